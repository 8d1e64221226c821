"""Groups of options of `generate` and `chat`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

AFTER = "behind the pieces without a name; may be repeated."
Pieces = Annotated[list[str] | None, typer.Option(metavar="WORDS", help="A piece of text; may be repeated.")]
Frames = Annotated[int, typer.Option(min=1, max=10**6, help="How many frames of a video are shown.")]


@dataclass
class Loading:
    """How a model is loaded."""

    weights: Annotated[
        str | None, typer.Option(help="Trained weights (raw) or their average (ema); what there is if left out.")
    ] = None
    device: Annotated[
        str | None, typer.Option(help="Where the model runs: cpu, cuda or mps; an accelerator if there is one.")
    ] = None


@dataclass
class Given:
    """What the model reads."""

    text: Pieces = None
    image: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"An image, {AFTER}")] = None
    video: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"A video, {AFTER}")] = None
    audio: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"A sound, {AFTER}")] = None
    series: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"A series of values, {AFTER}")] = None
    piece: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A piece of a modality of your own, by its name.")
    ] = None
    question: Annotated[str | None, typer.Option(help="A question about the pieces.")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            metavar="JSONL",
            help="A file of many prompts, one a line, each with pieces and perhaps a question.",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="How many prompts are read at once.")] = 8
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
            help="What is to come: text, image or mixed (text and images); of an Omni any of its modalities. auto is a "
            "picture if -o names one, else text; an Omni chooses."
        ),
    ] = "auto"
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the picture or sound goes; with --input a .jsonl file, with --target mixed a folder.",
        ),
    ] = None
    stream: Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")] = False
