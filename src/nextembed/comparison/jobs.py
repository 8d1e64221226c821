"""One job of a comparison in its own process: measure, tune, train and score. The result is written into its folder as
one file at the end; a stopped job resumes."""

import shutil
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.config import from_yaml
from ..core.files import write_json
from ..core.probe_table import ProbeTable
from ..core.run_folder import TEACHER, Line, read_history
from ..core.saved import Count, Number, load
from ..core.terminal import print
from ..errors import ConfigError, DataError, NextEmbedError, TrainingError
from ..evaluation.probes.samples import load_data
from ..evaluation.probes.sweep import sweep
from ..models.parts import ModelPart
from ..run import train_steps
from ..runs import Run, RunConfig, open_run
from ..tasks.pretraining import readers_of
from ..training.folder import opened
from .budget import Meter, measure_pace
from .configs import finetune_config, with_tokenizer
from .scores import Point, RunScores, read_pixels, read_probes, save_scores

FAILURES = (TrainingError, DataError)  # errors that affect one row only
SCORES, PACE, TRAINED, PROBES = "scores.json", "pace.json", "trained.json", "probe.json"
STAGE = "tokenizer"  # the folder of what a run starts from


@dataclass
class Job:
    """do: what. config: of the run, as YAML; stage: of what it starts from, a tokenizer, else empty. minutes: of the
    budget. labels: of each class, by column of fine-tuning. classes: in the data; 0 where it has no labels. code: files
    of the user's that may be run."""

    do: Literal["pace", "trial", "run", "untrained", "scratch", "existing"]
    folder: str
    row: str
    config: str = ""
    stage: str = ""
    seed: Count = 0
    minutes: Number | None = None
    tuned: dict[str, Number] = field(default_factory=dict)
    labels: dict[str, Count] = field(default_factory=dict)
    classes: Count = 0
    finetune_steps: Count = 0
    path: str = ""
    code: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return Path(self.folder)

    @property
    def result(self) -> Path:
        """The file of a finished job."""
        return self.place / (PACE if self.do == "pace" else SCORES)

    def settings(self) -> RunConfig:
        return self.read(self.config, "run")

    def read(self, text: str, name: str) -> RunConfig:
        """Settings of a run in the job's folder."""
        found: RunConfig = from_yaml(RunConfig, text, f"{self.row}: config")
        return found.model_copy(update={"output_dir": self.folder, "name": name})


@dataclass
class Trained:
    """Values that only the training process knows. peak_memory: bytes, None if it shares its process with others."""

    parameters_backbone: Count
    parameters_objective: Count
    peak_memory: Number | None


def work(job: Job, alone: bool = True) -> None:
    """Does a job. alone: in a process of its own, so that its peak memory is known.

    Raises:
        ConfigError, DataError, TrainingError: as of `fit`.
    """
    if job.do == "pace":
        write_json(job.result, asdict(measure_pace(job.settings(), job.minutes)))
        return
    do = {"trial": trial, "run": run, "untrained": untrained, "scratch": scratch, "existing": existing}[job.do]
    try:
        scores = do(job, alone)
    except NextEmbedError as err:
        if job.do == "existing" or isinstance(err, ConfigError) or not isinstance(err, FAILURES):
            raise
        scores = [RunScores(job.row, job.seed, failed=str(err), verdict="failed", sentence=str(err))]
    for one in scores:
        one.seed, one.tuned = job.seed, dict(job.tuned)
        one.folder = job.path or job.folder
    save_scores(job.result, scores)


def run(job: Job, alone: bool) -> list[RunScores]:
    """Trains by an objective, probes, and fine-tunes."""
    config = job.settings()
    found = trained_run(job, config, alone)
    scores = scores_of(found, job.row)
    if job.classes:
        file = found.dir / PROBES
        table = ProbeTable.load(file) if file.is_file() else probed(found)
        if not file.is_file():
            table.save(file)
            found.report()
        read_probes(table, None, scores)
    finetune_all(job, config, str(found.saved().first_of(TEACHER, "ema", "raw")), scores)
    for name in ("run", STAGE):  # of a finished run; its models stay
        shutil.rmtree(job.place / name / "checkpoints", ignore_errors=True)
    return [scores]


def trial(job: Job, alone: bool) -> list[RunScores]:
    """A short run for tuning, judged by the last quick probe, on validation."""
    found = trained_run(job, job.settings(), alone)
    scores = scores_of(found, job.row)
    scores.measured_on = "validation"
    if scores.curve:
        scores.values["linear"] = scores.validation["linear"] = scores.curve[-1].linear
    for name in ("run", STAGE):
        shutil.rmtree(job.place / name, ignore_errors=True)
    return [scores]


def untrained(job: Job, alone: bool) -> list[RunScores]:
    """The untrained network, and raw pixels."""
    config, scores, pixels = (
        job.settings(),
        RunScores(job.row, kind="baseline"),
        RunScores("raw pixels", kind="baseline"),
    )
    if job.classes:
        assert isinstance(config.model, ModelPart)
        torch.manual_seed(config.seed)
        model = config.model.build().eval().to(device_of(config))
        table = sweep({"untrained": model}, load_data(config.data, config.probe, model.config), config.probe)
        read_probes(table, "untrained", scores)
        read_pixels(table, pixels)
        return [scores, pixels] if job.seed == 0 else [scores]
    return [scores]


def scratch(job: Job, alone: bool) -> list[RunScores]:
    """The same network with labels: few of them for the steps of a fine-tuning, all of them for the budget."""
    config, scores = job.settings(), RunScores(job.row, kind="baseline")
    found = trained_run(job, config, alone)
    fill(scores, found)
    top1 = found.task.finish(found, quiet)
    if "top1" in top1:
        scores.values["finetune_100"] = top1["top1"]
    finetune_all(job, pretraining_of(config), None, scores)
    shutil.rmtree(found.dir / "checkpoints", ignore_errors=True)
    return [scores]


def existing(job: Job, alone: bool) -> list[RunScores]:
    """Scores an existing run; its folder is not changed."""
    found = open_run(job.path)
    config = found.config
    scores = scores_of(found, job.row)
    scores.kind = "run"
    own = job.place / PROBES
    table = found.probes()
    if table is None and job.classes:
        table = ProbeTable.load(own) if own.is_file() else probed(found)
        table.save(own)
    if table is not None:
        read_probes(table, None, scores)
    finetune_all(job, config, str(found.saved().first_of(TEACHER, "ema", "raw")), scores)
    return [scores]


def trained_run(job: Job, config: RunConfig, alone: bool) -> Run:
    """The run in the job's folder, trained to its end, resumed if necessary."""
    file = job.place / TRAINED
    if not file.is_file():
        if job.stage:
            stage = job.read(job.stage, STAGE)
            if not (done := job.place / f"{STAGE}.json").is_file():
                write_json(done, asdict(Trained(*train_in_place(stage).parameters, None)))
            config = with_tokenizer(config, str(stage.dir))
        meter = train_in_place(config)
        write_json(file, asdict(Trained(*meter.parameters, peak_memory() if alone else None)))
    return open_run(config.dir)


def train_in_place(config: RunConfig) -> Meter:
    """A run in exactly its own folder, trained to its end, resumed if necessary."""
    place = config.dir
    if place.is_dir() and not (place / "config.yaml").is_file():
        shutil.rmtree(place)  # stopped before its first line
    resumes = place.is_dir()
    meter = Meter(read_history(place), config.train.log_steps)
    with opened(place, resume=resumes, exact=not resumes) as run_dir:
        train_steps(run_dir, config, watchers=[meter])
    return meter


def scores_of(found: Run, row: str) -> RunScores:
    """Verdict, speed, size and curve from its log."""
    verdict = found.config.objective.verdict(found.history())
    scores = RunScores(row, verdict=verdict.word, sentence=verdict.sentence)
    fill(scores, found)
    return scores


def fill(scores: RunScores, found: Run) -> None:
    """Speed, size, cost and curve of a finished run."""
    before, values = read_history(found.dir.parent / STAGE), scores.values
    history = after(found.history(), before[-1] if before else {})
    last = history[-1] if history else {}
    scores.steps = int(last.get("step", 0))
    values["images_seen"] = float(last.get("samples_seen", 0))
    if wall := last.get("wall_seconds"):
        values["images_per_second"] = values["images_seen"] / wall
        values["wall_minutes"], values["cpu_minutes"] = wall / 60, last["cpu_seconds"] / 60
    elif speeds := [line["images_per_second"] for line in history if "images_per_second" in line]:
        values["images_per_second"] = statistics.median(speeds)
    if (file := found.dir.parent / TRAINED).is_file():
        trained = load(Trained, file)
        values["parameters_backbone"] = trained.parameters_backbone
        values["parameters_objective"] = trained.parameters_objective
        if trained.peak_memory is not None:
            values["peak_memory"] = trained.peak_memory
    elif (sizes := found.environment().parameters) is not None:
        values["parameters_backbone"] = sizes.all
    scores.curve = curve(history)


def after(history: list[Line], stage: Mapping[str, float]) -> list[Line]:
    """Logged lines that include the images and seconds of the stage before."""
    counted = {name: stage[name] for name in ("samples_seen", "cpu_seconds", "wall_seconds") if name in stage}
    return [line | {name: line[name] + own for name, own in counted.items() if name in line} for line in history]


def curve(history: list[Line]) -> list[Point]:
    """The quick probes: with averaged weights if there are any, the better of output and middle layer."""
    points = []
    for line in history:
        best: dict[str, float] = {}
        for probe in ("linear", "knn"):
            for kind in ("probe/ema_", "probe/"):
                found = [line[name] for ending in ("", "_middle") if (name := f"{kind}{probe}{ending}") in line]
                if found and probe not in best:
                    best[probe] = max(found)
        if len(best) == 2:
            times = line.get("cpu_seconds"), line.get("wall_seconds")
            points.append(Point(int(line["samples_seen"]), *times, **best))
    return points


def probed(found: Run) -> ProbeTable:
    """Probes of the averaged weights, else of the raw ones."""
    saved = found.saved()
    name = "ema" if "ema" in saved.folders else "raw"
    model = found.model(name)
    data = load_data(found.source(), found.probe_settings(), model.config)
    return sweep({name: model}, data, found.probe_settings(), readers=readers_of(found, {name: model}))


def finetune_all(job: Job, base: RunConfig, pretrained: str | None, scores: RunScores) -> None:
    """Fine-tunes on each number of labels, and keeps only the accuracies."""
    for column, per_class in job.labels.items() if job.finetune_steps else ():
        file = job.place / f"{column}.json"
        if not file.is_file():
            top1 = finetuned(job, base, pretrained, column, per_class)
            write_json(file, {"top1": top1})
        scores.values[column] = load(Top1, file).top1


@dataclass
class Top1:
    top1: Number


def finetuned(job: Job, base: RunConfig, pretrained: str | None, column: str, per_class: int) -> float:
    """Top-1 after the last step, on test, or on validation where there is no test split."""
    steps, number = job.finetune_steps, per_class * job.classes
    config = finetune_config(base, pretrained, per_class, job.seed, steps, number)
    config = config.model_copy(update={"output_dir": job.folder, "name": column})
    shutil.rmtree(config.dir, ignore_errors=True)
    with opened(config.dir, resume=False, exact=True) as run_dir:
        train_steps(run_dir, config)
    done = open_run(config.dir)
    scored = done.task.finish(done, quiet)
    shutil.rmtree(config.dir, ignore_errors=True)
    if "top1" not in scored:
        raise DataError(f"{job.row}: the fine-tuned model could not be scored")
    return float(scored["top1"])


def pretraining_of(config: RunConfig) -> RunConfig:
    """Settings whose model is the classifier's network."""
    model: Any = config.model
    return config.model_copy(update={"model": model.architecture})


def device_of(config: RunConfig) -> torch.device:
    device = None if config.train.on_cpu() else torch.accelerator.current_accelerator()
    return device or torch.device("cpu")


def quiet(text: str) -> None:
    """Into the job's log."""
    print(text, flush=True)


def peak_memory() -> float:
    """Peak memory in bytes: allocated on the GPU, else of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        import psutil  # a dependency of accelerate

        return float(psutil.Process().memory_info().peak_wset)
    import resource  # of Unix

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
