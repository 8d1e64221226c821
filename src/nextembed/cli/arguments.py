"""Arguments of several commands, each with its completion."""

from pathlib import Path
from typing import Annotated

import typer

from .completing import of_words, offer_data_settings, offer_models, offer_runs, offer_settings

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run folder, a checkpoint, a saved model or a hub id.", autocompletion=offer_models
    ),
]
LocalModel = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run folder, a checkpoint or a saved model.", autocompletion=offer_models),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change, e.g. probe.layers=[3,6].",
        autocompletion=of_words(offer_settings),
    ),
]
DataSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings of the data, e.g. data.split=test.",
        autocompletion=of_words(offer_data_settings),
    ),
]
Labelled = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="A folder, file or hub id with labels; the run's own data if left out."),
]
Decoders = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN",
        help="Decode latents to pixels with this latent_decoder run; may be repeated.",
        autocompletion=offer_runs,
    ),
]
