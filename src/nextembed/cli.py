"""The command line: recipe name and settings in; exit code and one clear line out.

Exit codes: 0 fine, 1 failed while running, 2 wrong settings or usage, 130 stopped with Ctrl-C (and saved).
Every command imports what it needs itself, so that --help and usage errors answer at once.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import ConfigError, NextEmbedError

if TYPE_CHECKING:
    from .run import Run, RunConfig

app = typer.Typer(
    help="Pretrain a transformer to predict the next embedding, see what it learned, use it anywhere.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. train.max_steps=100."),
]


def main(args: list[str] | None = None) -> int:
    """Runs the command line and gives its exit code. args: None takes sys.argv's."""
    words = sys.argv[1:] if args is None else list(args)
    debug = "--debug" in words  # wherever it stands
    try:
        code = app([w for w in words if w != "--debug"], prog_name="nextembed", standalone_mode=False) or 0
        return _fail("stopped", 130, debug=False) if code == 130 else code  # typer took the Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", 130, debug)
    except NextEmbedError as err:
        return _fail(str(err), err.exit_code, debug)
    except Exception as err:
        if hasattr(err, "format_message"):  # typer's usage errors
            return _fail(err.format_message(), 2, debug)
        reason = " ".join(str(err).split()) or "no message"
        return _fail(f"unexpected {type(err).__name__}: {reason[:300]} (run again with --debug to see where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if code == 1 or os.environ.get("RANK", "0") == "0":  # of several ranks, one says what is wrong for all
        print(f"nextembed: {message}", file=sys.stderr)
    return code


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"nextembed {version('nextembed')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; `main` takes --debug out of the line before it comes here."""


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
        Path | None, typer.Option(metavar="RUN", help="Go on with a run folder, in place of RECIPE.")
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
    from . import recipes
    from .core import distributed
    from .core.config import apply_overrides
    from .run import fit

    config = apply_overrides(recipes.load(recipe or str(resume)), overrides)
    run = fit(config, resume=str(resume) if resume else None)
    if distributed.is_main():
        print(summary(run))


def summary(run: "Run") -> str:
    """What was learned, in plain words, and where to go from here."""
    from .core.run_folder import read_lines
    from .evaluation.table import ProbeTable, sentence
    from .nn.diagnostics import verdict

    lines = [""]
    probes = run.dir / "probe.json"
    lines += sentence(ProbeTable.load(probes)) if probes.is_file() else ["No probe was run."]
    found = verdict(read_lines(run.dir / "metrics.jsonl"))
    lines += [f"Verdict: {found.word}. {found.sentence}", ""]
    folder = os.path.relpath(run.dir)
    if (run.dir / "report.html").is_file():
        lines.append(f"Report:    {folder}/report.html    (nextembed report {folder} --open)")
    lines.append(f'Use it:    import nextembed; transformers.AutoModel.from_pretrained("{folder}/model")')
    length = run.config.train
    longer = f"max_steps={2 * length.max_steps}" if length.max_steps else f"epochs={2 * (length.epochs or 0):g}"
    lines.append(f"Longer:    nextembed train --resume {folder} train.{longer}")
    return "\n".join(lines)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print its settings as YAML.")] = None,
    overrides: Settings = None,
) -> None:
    """List the recipes, or print all settings of one."""
    from . import recipes
    from .core.config import apply_overrides, to_yaml

    if name:
        print(to_yaml(apply_overrides(recipes.load(name), overrides or [])), end="")
        return
    for recipe, make in recipes.recipes().items():
        if not recipe.endswith("_tiny"):
            print(f"{recipe:30} {(make.__doc__ or '').partition(chr(10))[0]}")
    print("\nEach has a twin NAME_tiny that takes a few steps on any machine. Settings: nextembed recipes NAME")


@app.command()
def probe(
    target: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run, a checkpoint or a saved model.")],
    overrides: Settings = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Hub id, folder or file with labels; the run's own if left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where probe.json goes; RUN/probe.json if left out.")
    ] = None,
) -> None:
    """Measure what frozen features hold: kNN and linear probes.

    Over layer x pooling (mean, last, first) x attention (causal, full) x weights (raw, EMA, untrained), beside raw
    pixels. Settings are those of the run: data.label_column=species, probe.layers=[3,6], ...
    """
    from rich.console import Console

    from .core.run_folder import run_folder
    from .evaluation.loading import probe_checkpoint
    from .evaluation.table import sentence

    config = probe_settings(target, data, overrides or [])
    table = probe_checkpoint(target, config.data, config.probe)
    Console().print(table.render())
    print("\n".join(sentence(table)))
    run = run_folder(target)
    file = output or (run / "probe.json" if run and data is None else None)
    if file:
        print(f"Saved:  {os.path.relpath(table.save(file))}")


def probe_settings(target: str, source: str | None, overrides: list[str]) -> "RunConfig":
    """The data and probe settings for a run or a lone checkpoint; only the fields `data` and `probe` mean anything.

    source: replaces the run's data, with the splits that the new source has.
    """
    from .core.config import apply_overrides
    from .core.run_folder import run_folder
    from .data.sources import ImageData
    from .run import RunConfig, read_run_config
    from .training.trainer import TrainConfig

    run = run_folder(target)
    if run is None and source is None:
        raise ConfigError(f"{target} is not in a run folder, so name labelled images: --data SOURCE")
    config = read_run_config(run) if run else RunConfig(train=TrainConfig(max_steps=1))
    if source is not None:
        config = config.model_copy(update={"data": ImageData(source=source)})
    return apply_overrides(config, overrides)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write RUN/report.html anew.

    One self-contained page: curves, diagnostics, probes, attention and similarity maps.
    """
    from .report import write_report

    page = write_report(run)
    print(f"Report:  {os.path.relpath(page)}")
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            print("there is no browser here; copy the file to a machine that has one")


@app.command()
def doctor() -> None:
    """Say what machine, versions and extras are here."""
    print("\n".join(f"{name:14} {text}" for name, text in diagnosis()))


PACKAGES = ["nextembed", "torch", "torchvision", "transformers", "accelerate", "datasets", "pydantic", "scikit-learn"]
EXTRAS = {
    "wandb": ("wandb", "live curves on wandb.ai"),
    "trackio": ("trackio", "live curves, local"),
    "timm": ("bench", "the model beside ours in benchmarks"),
    "mkdocs-material": ("docs", "building the documentation"),
    "pytest": ("dev", "running the tests"),
}


def diagnosis() -> list[tuple[str, str]]:
    """What `nextembed doctor` prints, (name, text) a line. Something missing or broken is a line, never an error."""
    import platform
    import shutil

    lines = [
        ("machine", f"{platform.platform()}, {_cores()} cores, {_memory()}"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"),
    ]
    lines += [(name, _installed(name) or "MISSING: pip install nextembed again") for name in PACKAGES]
    lines += [("accelerator", text) for text in _accelerators()]
    for name, (extra, use) in EXTRAS.items():
        text = _installed(name) or f"not installed: pip install 'nextembed[{extra}]'"
        lines.append((name, f"{text} ({use})"))
    return lines


def _installed(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # fewer than all in a container; not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory"
    except (AttributeError, ValueError, OSError):  # Windows
        return "unknown memory"


def _accelerators() -> list[str]:
    try:
        import torch

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device is None:
            return [f"none: training runs on the CPU, {torch.get_num_threads()} threads"]
        if device.type != "cuda":
            return [device.type]
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return [f"{p.name}, {p.total_memory / 2**30:.0f} GiB, {bf16}, CUDA {torch.version.cuda}" for p in found]
    except Exception as err:  # a broken driver or installation is what doctor is asked about
        return [f"torch does not start: {type(err).__name__}: {' '.join(str(err).split())[:200]}"]


if __name__ == "__main__":
    sys.exit(main())
