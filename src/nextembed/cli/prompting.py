"""Groups of options of `generate` and `chat`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a saved model or a hub id.")
]
Pieces = Annotated[list[str] | None, typer.Option(metavar="WORDS", help="A piece of text.")]
PieceFiles = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="A piece; after those without a name: images, videos, ...")
]
Frames = Annotated[int, typer.Option(min=1, max=10**6, help="Of a video.")]


@dataclass
class Loading:
    """How a model is loaded."""

    weights: Annotated[str | None, typer.Option(help="raw or ema; what there is if left out.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one.")] = None


@dataclass
class Given:
    """What the model reads."""

    text: Pieces = None
    image: PieceFiles = None
    video: PieceFiles = None
    audio: PieceFiles = None
    series: PieceFiles = None
    piece: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A piece of a modality of your own, by its name.")
    ] = None
    question: Annotated[str | None, typer.Option(help="Ask about the pieces.")] = None
    prompts: Annotated[
        Path | None, typer.Option("--input", "-i", metavar="JSONL", help="Many prompts, one a line: pieces, question.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Prompts at once.")] = 8
    frames: Frames = 8

    @property
    def named(self) -> list[tuple[str, str]]:
        """(kind, file or text) of the pieces with a kind."""
        by_kind = {"image": self.image, "video": self.video, "audio": self.audio, "series": self.series}
        by_kind["text"] = self.text
        return [(kind, value) for kind, values in by_kind.items() for value in values or []]


@dataclass
class Wanted:
    """What is to come."""

    target: Annotated[
        str,
        typer.Option(
            help="What comes: text, image, mixed (text and images); of an Omni any of its modalities. auto: a picture "
            "if -o names one, else text; an Omni chooses."
        ),
    ] = "auto"
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A picture, sound; of --input a .jsonl; of --target mixed a folder."
        ),
    ] = None
    stream: Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")] = False
