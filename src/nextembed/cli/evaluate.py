"""`probe`, `evaluate` and `report`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.belonging import own_file
from ..core.files import checked_file
from ..core.places import NO_RUN, check_here
from ..core.terminal import print
from ..errors import ConfigError
from .app import app
from .arguments import Decoders, Labelled, LocalModel, Model, Settings
from .options import command
from .words import check_data, check_model, check_settings

if TYPE_CHECKING:
    from ..runs import Run, RunConfig


@app.command()
def probe(
    target: Model,
    overrides: Settings = None,
    data: Labelled = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=("Write the table as JSON to this file; RUN/probe.json if left out.")),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all layers, poolings and attention modes.")] = False,
) -> None:
    """Measure frozen features with kNN and linear probes.

    The table shows what was learned: the best row next to the same network untrained and raw pixels. --all
    shows the whole sweep over layer, pooling (mean, last, first), attention (causal, full) and weights (raw, EMA,
    untrained).

    Settings are those of the run: data.label_column=species, probe.layers=[3,6]. For an Omni, images are probed, or the
    modality that probe.modality names.

    \b
    Examples:
      nextembed probe runs/mine
      nextembed probe runs/mine --data photos data.label_column=species --all
      nextembed probe runs/omni --data speech probe.modality=audio probe.label_column=category
    """
    check_model(target)
    check_labelled(target, data)
    check_settings(overrides or [])
    from ..core.console import PlainConsole
    from ..core.probe_table import sentence
    from ..runs import open_run
    from ..tasks.pretraining import probe as measure

    if output is not None:
        checked_file(output)
    run = open_run(target)
    config = probe_settings(run, data, overrides or [])
    file = output or (own_file(run.dir, "probe.json") if run.values and data is None else None)
    table = measure(run, config.data, config.probe)
    PlainConsole().print(table.render() if everything else table.answer())
    print("\n".join(sentence(table)))
    if file:
        print(f"Saved:  {os.path.relpath(table.save(file))}")


def check_labelled(target: str, data: str | None) -> None:
    """Raises ConfigError for a missing source, or for a model from the hub without a source."""
    if data is not None:
        check_data(data)
    elif not Path(target).expanduser().exists():
        raise ConfigError(f"{target} is not in a run folder, so name labelled images or rows: --data SOURCE")


def probe_settings(run: "Run", source: str | None, overrides: list[str]) -> "RunConfig":
    """The data and probe settings for a run or a lone checkpoint; only the fields `data` and `probe` mean anything.

    source: replaces the run's data, with the splits that the new source has: images, or, where the settings name a
    modality, rows of a table.
    """
    from ..core.config import apply_overrides
    from ..data.records import Records
    from ..data.sources import ImageData
    from ..runs import RunConfig
    from ..training.settings import TrainConfig

    if not run.values and source is None:
        raise ConfigError(f"{run.path} is not in a run folder, so name labelled images or rows: --data SOURCE")
    config = run.config if run.values else RunConfig(train=TrainConfig(max_steps=1))
    if source is not None:
        rows = any(text.startswith("probe.modality=") for text in overrides) or config.probe.modality is not None
        config = config.model_copy(update={"data": Records(source=source) if rows else ImageData(source=source)})
    found: RunConfig = apply_overrides(config, overrides)
    return found


@dataclass
class Language:
    """Options for evaluations of Emu models only."""

    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Task for an Emu model: caption, vqa, video_qa, retrieval or text_to_image; or samples, for a "
            "run that generates images.",
        ),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help=("With --task: folder of the images; that of the data file if left out.")),
    ] = None
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help=("With --task: a second file, with the answers of VQA or the relevance of VisDial.")
        ),
    ] = None
    format: Annotated[
        str, typer.Option(help="With --task: format of the file: table, coco, vqav2, okvqa, vizwiz, visdial or mmvet.")
    ] = "table"
    shots: Annotated[
        int, typer.Option(metavar="K", help="With --task: number of few-shot examples before each item.")
    ] = 0
    choose: Annotated[str, typer.Option(help=("With --task: how few-shot examples are chosen: random or similar."))] = (
        "random"
    )
    paintings: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=("Save the images generated by --task text_to_image in this folder.")),
    ] = None

    def given(self) -> dict[str, str | int]:
        """Settings of the evaluation that differ from the defaults."""
        usual = Language()
        values = {"images": self.images, "annotations": self.annotations, "shots": self.shots}
        values |= {"choose": self.choose, "format": self.format}
        return {name: value for name, value in values.items() if value is not None and value != vars(usual)[name]}


@command(language=Language)
def evaluate(
    target: Model,
    language: Language,
    overrides: Settings = None,
    data: Labelled = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT", help=("Split to score on: test, validation or train; the first that exists if left out.")
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the scores as JSON to this file; RUN/scores.json if left out."
        ),
    ] = None,
) -> None:
    """Score a classifier or segmenter, an Emu on a --task, or generated images.

    A classifier gets top-1 and top-5, the accuracy of each class and the most frequent confusions; a run is scored with
    its best weights. Its settings are those of the run: data.where={vendor: noto}, probe.num_test=50000.

    An Emu model is scored on captions, questions or generated images; settings are then those of the evaluation:
    columns.references=name, where.split=test, num_examples=100, num_beams=1.

    Generated images (--task samples) are measured in the features of a classifier that features=MODEL names: Fréchet
    distance, classes, sharpness, and whether they repeat training images; num_images=2000, seed=1, sampling.guidance=2.

    \b
    Examples:
      nextembed evaluate runs/finetuned
      nextembed evaluate runs/finetuned --data photos --split test
      nextembed evaluate runs/emu --task caption --data captions.jsonl columns.references=name
      nextembed evaluate runs/var_demo --task samples features=runs/classifier sampling.guidance=2
    """
    task, given = language.task, language.given()
    if task == "samples":
        check_model(target)
        if given or language.paintings or data is not None or split is not None:
            raise ConfigError("--task samples takes settings only: features=MODEL, split=test, num_images=1000")
        from .samples import evaluate_samples

        evaluate_samples(target, overrides or [], output)
        return
    if task is not None:
        check_model(target)
        from .language import evaluate_language

        given |= {"split": split} if split else {}
        evaluate_language(target, task, data, given, overrides or [], output, language.paintings)
        return
    if split not in (None, "test", "validation", "train"):
        raise ConfigError(f"--split {split}: should be test, validation or train")
    if given or language.paintings:
        raise ConfigError(f"--{next(iter(given), 'paintings')} needs --task")
    evaluate_classifier(target, overrides or [], data, split, output)


def evaluate_classifier(
    target: str, overrides: list[str], data: str | None, split: str | None, output: Path | None
) -> None:
    check_here(target, NO_RUN, hub=False)
    check_labelled(target, data)
    check_settings(overrides)
    from ..core.console import PlainConsole
    from ..runs import open_run
    from ..tasks.base import SPLITS
    from ..tasks.scoring import score

    if output is not None:
        checked_file(output)
    run = open_run(target)
    config = probe_settings(run, data, overrides)
    splits = (split,) if split else (*SPLITS, "train") if data is not None else SPLITS
    is_own = bool(run.values) and data is None and split is None and not overrides
    file = output or (own_file(run.dir, "scores.json") if is_own else None)
    scores = score(run, config.data, config.probe, splits)
    PlainConsole().print(scores.render())
    print(scores.sentence())
    if file:
        print(f"Saved:  {os.path.relpath(scores.save(file))}")


@app.command()
def report(
    run: LocalModel,
    decoder: Decoders = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help=("Print the data of the run as JSON instead of writing a page."))
    ] = False,
) -> None:
    """Rewrite RUN/report.html.

    It is one self-contained page of curves, diagnostics, probes, attention and similarity maps, and latents as pixels.

    \b
    Examples:
      nextembed report runs/mine --open
      nextembed report runs/mine --decoder runs/latent_decoder
    """
    check_here(run, NO_RUN, hub=False)
    from ..core.files import to_json
    from ..runs import open_run

    opened = open_run(run)
    if as_json:
        print(to_json(opened.view().plain()))
        return
    page = opened.report(decoders=tuple(decoder or ()))
    print(f"Report:  {os.path.relpath(page)}")
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            print("no browser found here; copy the file to a machine that has one")
