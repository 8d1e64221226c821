"""`train` and `recipes`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.terminal import print
from ..errors import ConfigError
from .app import Settings, app

if TYPE_CHECKING:
    from ..run import Run


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE | KEY=VALUE",
            help="A recipe (see `nextembed recipes`), config.yaml or my_file.py:my_recipe; then settings.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Go on with a run folder, or from one of its checkpoints, in place of RECIPE."
        ),
    ] = None,
) -> None:
    """Train by a recipe, probe, and write a report."""
    recipe, overrides = (words[0], words[1:]) if words and "=" not in words[0] else (None, words or [])
    if (recipe is None) == (resume is None):
        raise ConfigError(
            "give a recipe, a config.yaml or my_file.py:my_recipe; `nextembed recipes` lists the recipes"
            if resume is None
            else f"--resume takes its settings from {resume}; beside it only KEY=VALUE"
        )
    from .. import recipes
    from ..core import distributed
    from ..core.config import apply_overrides
    from ..run import fit, fit_stage
    from ..training.checkpoint import resume_place

    config = apply_overrides(recipes.load(recipe or str(resume_place(resume or "")[0])), overrides)
    for stage in [] if resume else recipes.missing_stages(config):
        if distributed.is_main():
            print(f"{config.name} starts from {stage.name}, which is not there yet: training it first")
        fit_stage(stage)
    run = fit(config, resume=str(resume) if resume else None)
    if distributed.is_main():
        print(summary(run))


def summary(run: "Run") -> str:
    """What was learned, in plain words, and where to go from here."""
    from ..core.probe_table import ProbeTable, sentence
    from ..core.run_folder import read_history
    from ..core.scores import ClassScores, SegmentScores
    from ..run import task_of

    lines = [""]
    scores, probes = run.dir / "scores.json", run.dir / "probe.json"
    found = run.config.objective.verdict(read_history(run.dir))
    task = task_of(run.config)
    if task == "multimodal":
        lines += [*multimodal_losses(run), f"Verdict: {found.word}. {found.sentence}", ""]
    elif task == "pretraining":
        lines += sentence(ProbeTable.load(probes)) if probes.is_file() else ["No probe was run."]
        lines += [f"Verdict: {found.word}. {found.sentence}", ""]
    else:
        kind = SegmentScores if task == "segmentation" else ClassScores
        lines += [kind.load(scores).sentence() if scores.is_file() else "Nothing was scored.", ""]
    folder = os.path.relpath(run.dir)
    if (run.dir / "report.html").is_file():
        lines.append(f"Report:    {folder}/report.html    (nextembed report {folder} --open)")
    model = "best" if (run.dir / "best").is_dir() else "model"
    uses = {
        "pretraining": f'transformers.AutoModel.from_pretrained("{folder}/{model}")',
        "classification": f'transformers.pipeline("image-classification", model="{folder}/{model}")',
        "segmentation": f'transformers.pipeline("image-segmentation", model="{folder}/{model}")',
    }
    if use := uses.get(task):
        lines.append(f"Use it:    import nextembed, transformers; {use}")
    if (run.dir / "visual_decoder").is_dir():
        lines.append(f'Use it:    nextembed generate {folder} "red apple:" --target image -o apple.png')
    elif run.config.model.kind == "omni":
        lines.append(f"Use it:    {use_of_omni(run.config.model, folder)}")
    elif task == "multimodal":
        lines.append(
            f"Use it:    nextembed generate {folder}/{model} PICTURE.png    (or nextembed chat {folder}/{model})"
        )
    length = run.config.train
    longer = f"max_steps={2 * length.max_steps}" if length.max_steps else f"epochs={2 * (length.epochs or 0):g}"
    lines.append(f"Longer:    nextembed train --resume {folder} train.{longer}")
    return "\n".join(lines)


def use_of_omni(model: Any, folder: str) -> str:
    """A command that goes from one modality of an Omni run to another."""
    kinds = {name: own.get("kind", name) for name, own in model.modalities.items()}
    target = "text" if "text" in kinds else next(iter(kinds))
    given = next((name for name in kinds if kinds[name] == "image" and name != target), None)
    given = given or next((name for name in kinds if name != target), target)
    file = {"image": "--image PICTURE.png", "video": "--video FILM.mp4", "audio": "--audio SOUND.wav",
            "text": '--text "a red apple"'}.get(kinds[given], f"--piece {given}=FILE")  # fmt: skip
    return f"nextembed generate {folder} {file} --target {target}"


def multimodal_losses(run: "Run") -> list[str]:
    """Both losses at the end, in one line; of an Omni how near it comes to each modality's next latent."""
    last = run.metrics
    if found := {k.partition("/")[2]: last[k] for k in last if k.startswith("cos_next/")}:
        line = "Cosine with the next latent: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        right = {k.partition("/")[2]: last[k] for k in last if k.startswith("top1/")}
        more = ", ".join(f"{name} {100 * value:.1f} %" for name, value in right.items())
        return [f"{line}." + (f" Right at first: {more}." if more else "")]
    if "text_loss" not in last:
        return []
    text = f"Text: {last['text_loss']:.3f} nats a token, {100 * last['text_accuracy']:.1f} % right"
    return [f"{text}. Latents: {run.config.objective.distance} {last['regression_loss']:.4f}."]  # type: ignore[attr-defined]


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print its settings as YAML.")] = None,
    overrides: Settings = None,
) -> None:
    """List the recipes, or print all settings of one."""
    from .. import recipes
    from ..core.config import apply_overrides, to_yaml

    if name:
        print(to_yaml(apply_overrides(recipes.load(name), overrides or [])), end="")
        return
    listed = recipes.recipes()
    for recipe, make in listed.items():
        print(f"{recipe:{max(map(len, listed))}}  {(make.__doc__ or '').partition(chr(10))[0]}")
    print("\nNAME_tiny is the same in small, a few steps on any machine. Settings: nextembed recipes NAME")
