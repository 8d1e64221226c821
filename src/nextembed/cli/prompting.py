"""Groups of options of `generate` and `chat`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

AFTER = "after the unnamed pieces; may be repeated."
Pieces = Annotated[list[str] | None, typer.Option(metavar="WORDS", help="A piece of text; may be repeated.")]
Frames = Annotated[int, typer.Option(min=1, max=10**6, help="Number of frames taken from a video.")]


@dataclass
class Loading:
    """How a model is loaded."""

    weights: Annotated[
        str | None, typer.Option(help="Trained weights (raw) or their average (ema); whichever exists if left out.")
    ] = None
    device: Annotated[
        str | None, typer.Option(help="Device to run on: cpu, cuda or mps; an accelerator if there is one.")
    ] = None


@dataclass
class Given:
    """Options of the input."""

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
            help="A .jsonl file of prompts, one per line, each with pieces and optionally a question.",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Number of prompts per batch.")] = 8
    frames: Frames = 8

    @property
    def named(self) -> list[tuple[str, str]]:
        """(kind, file or text) of the pieces with a kind."""
        by_kind = {"image": self.image, "video": self.video, "audio": self.audio, "series": self.series}
        by_kind["text"] = self.text
        return [(kind, value) for kind, values in by_kind.items() for value in values or []]


@dataclass
class Wanted:
    """Options of the output."""

    target: Annotated[
        str,
        typer.Option(
            help="What to generate: text, image or mixed (text and images); for an Omni any of its modalities. "
            "auto: an image if -o names an image file, else text; an Omni chooses itself."
        ),
    ] = "auto"
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to save the image or sound to; with --input a .jsonl file, with --target mixed a folder.",
        ),
    ] = None
    stream: Annotated[bool, typer.Option("--stream", help="Stream the text while it is generated.")] = False
