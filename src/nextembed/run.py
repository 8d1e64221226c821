"""One run: the only place where data, model, objective, trainer, probes and report meet."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from .core import distributed
from .core.config import DATA, MODELS, Config, Part, common_task, from_yaml, to_yaml
from .core.files import read_text, write_json, write_text
from .core.objective import OBJECTIVES, ObjectiveSettings, PretrainingModel
from .core.optim import OptimConfig
from .core.probe_table import ProbeTable
from .core.run_folder import read_history
from .core.sizes import building
from .core.types import IGNORE_LABEL, Backbone, Loading
from .data.draws import DrawnEncode, drawing
from .data.labels import classes_to_learn
from .data.masks import classes_to_segment
from .data.stream import advance
from .errors import ConfigError, DataError
from .evaluation.classification import METRIC
from .evaluation.finetuned import quick_score, score_checkpoint
from .evaluation.held_out import held_out_loss
from .evaluation.probes.loading import load_data, probe_checkpoint
from .evaluation.probes.sweep import ProbeConfig, QuickProbe
from .evaluation.segmentation import METRIC as SEGMENT_METRIC
from .evaluation.segmented import quick_segment
from .models.nepa.settings import NepaModel
from .objectives.next_embedding import NextEmbeddingSettings
from .report import write_report
from .toys.kinds import ImageData
from .training.adapt import adapt, trained_parameters
from .training.checkpoint import check_model, checkpoint_step, resume_place, start_state, whole_checkpoint
from .training.folder import opened
from .training.loop import Loop
from .training.memory import check_memory
from .training.settings import TrainConfig
from .training.watch import Probe, ProgressBar, Records, Say

DataPart = Annotated[SerializeAsAny[Part], BeforeValidator(DATA.parse)]
ModelPart = Annotated[SerializeAsAny[Part], BeforeValidator(MODELS.parse)]
ObjectivePart = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(OBJECTIVES.parse)]


# Of the tasks with labels: what gives the class names of checked data, and what the best weights are chosen by.
CLASSES = {"classification": classes_to_learn, "segmentation": classes_to_segment}
BEST = {"classification": METRIC, "segmentation": SEGMENT_METRIC}


class RunConfig(Config):
    """All settings of a run; RUN/config.yaml holds them, defaults included.

    name: of the run folder in output_dir. seed: of weights, data order, augmentation and all draws in training.
    data, model, objective: parts, chosen by `kind`, also `my_file.py:MyPart`.
    after: recipes that this one starts from; `nextembed train` first trains those whose run folder is not there.
    """

    name: str = "run"
    seed: int = Field(0, ge=0, lt=2**32)
    output_dir: str = "runs"
    data: DataPart = Field(default_factory=lambda: ImageData(source="emoji"))
    model: ModelPart = Field(default_factory=NepaModel)
    objective: ObjectivePart = Field(default_factory=NextEmbeddingSettings)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    after: list[str] = []

    @field_validator("name")
    @classmethod
    def _one_part_of_a_path(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.-]{1,100}", name) or name in (".", ".."):
            raise ValueError(f"'{name}' is no name of a folder: letters, digits, _, - and . are, and not . or .. alone")
        return name


@dataclass
class Run:
    """A finished run. metrics: the last logged line and the best probe accuracies; model: the Hugging Face model."""

    dir: Path
    metrics: dict[str, Any]
    model: Any
    config: RunConfig


def fit(config: RunConfig | None = None, resume: str | Path | None = None) -> Run:
    """Trains, probes and reports. Everything it writes is in the run folder.

    resume: a run folder; training goes on from its last checkpoint, bit for bit as if it had never stopped. Or one of
    its checkpoints, RUN/checkpoints/step-000080; later ones are renamed to unused-step-... config may then be None
    (RUN/config.yaml is taken) or a changed one that fits the same model.
    A new run never touches a folder that exists: with `runs/demo` taken it goes to `runs/demo-2`.
    Raises ConfigError before anything is trained; TrainingError, DataError or Interrupted (after saving) later.
    """
    config = config or read_run_config(resume)
    place, named = resume_place(resume) if resume is not None else (None, None)
    if place is not None and not (place / "config.yaml").is_file():
        raise ConfigError(f"no run to resume in {place}: it has no config.yaml")
    distributed.start(config.train.device)
    with opened(place or folder_of(config), resume=place is not None) as run_dir:
        return train_in(run_dir, config, named)


def fit_stage(config: RunConfig) -> None:
    """Trains what another run starts from, in OUTPUT_DIR/NAME and nowhere else; one that was stopped goes on there.

    Arguments and errors as of `fit`; also raises ConfigError while another process trains the same stage.
    """
    distributed.start(config.train.device)
    folder = folder_of(config)
    begun = distributed.on_main(folder.exists)
    if begun and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run yet: wait for who is starting it; if nobody is, remove it")
    with opened(folder, resume=begun, exact=True) as run_dir:
        if not distributed.on_main((run_dir / "model").is_dir):  # else somebody else was faster
            train_in(run_dir, config)


def train_in(run_dir: Path, config: RunConfig, named: Path | None = None) -> Run:
    """A run in its folder, from the named checkpoint, or its last one, or the start."""
    checkpoint = distributed.on_main(lambda: whole_checkpoint(run_dir, named))
    micro_batch_size = config.train.micro_batch(distributed.world_size())
    progress = ProgressBar()
    torch.manual_seed(config.seed)
    data, model = cast(Any, config.data), cast(Any, config.model)  # what a kind offers is its own
    task = task_of(config)
    classes = [cast(Any, CLASSES[task])(data)] if task in CLASSES else []
    builder = resumed(model, checkpoint)
    with building("the model"):
        backbone = builder.build(*classes)
    if builder is not model:
        backbone.config._name_or_path = model.pretrained  # what an adapter belongs on
    adapt(backbone, config.train, config.seed)
    if task == "pretraining":
        config.probe.features(backbone.config.num_hidden_layers)  # a wrong layer would else be found after training
    with building("the objective"):
        objective = config.objective.build(cast(Backbone, backbone))
    net, arguments = PretrainingModel(backbone, objective), loader_arguments(builder, backbone, objective)
    check_memory(config.train, net, arguments)
    if checkpoint is not None:
        check_model(checkpoint, backbone)
    elif hasattr(builder, "prepare"):
        builder.prepare(backbone, data)
    loader = data.train_loader(
        Loading(
            micro_batch_size,
            config.seed,
            distributed.rank(),
            distributed.world_size(),
            start_state(checkpoint),
            run_dir / "skipped.jsonl",
        ),
        **arguments,
    )
    step = checkpoint_step(checkpoint) if checkpoint else 0
    loop = Loop(
        net,
        config.train,
        config.optim,
        run_dir,
        loader,
        advance,
        seed=config.seed,
        num_samples=loader.num_rows,
        image_processor=processor_of(builder),
        watchers=[Records(run_dir / "metrics.jsonl", config.objective.warnings, progress.say, step), progress],
        probe=online_probe(config, builder, backbone, progress.say),
        best=BEST.get(task),
    )
    if (why := net.inexact()) and loop.num_micro_batches * distributed.world_size() > 1:
        progress.say(f"steps depend on train.micro_batch_size and the number of ranks: {why}")
    trained = trained_parameters(backbone)
    if trained[0] == 0:
        own = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        progress.say(f"the model is frozen; {own:,} parameters of the objective train")
    elif trained[0] < trained[1]:
        progress.say(f"{trained[0]:,} of {trained[1]:,} parameters train ({trained[0] / trained[1]:.2%})")
    write_settings(run_dir, config, trained)
    try:
        loop.train(checkpoint)
    finally:
        progress.close()
    loop.save_folders()
    probed = probe_run(run_dir, config, progress.say)
    metrics = distributed.on_main(lambda: finish(run_dir, config, probed, progress.say))
    return Run(run_dir, metrics, backbone.eval(), config)


def resumed(model: Any, checkpoint: Path | None) -> Any:
    """The model part, but from a checkpoint where there is one: what its `pretrained` names may have moved or changed
    since the run began. The checkpoint's weights are read in later."""
    if checkpoint is None or getattr(model, "pretrained", None) is None:
        return model
    return model.model_copy(update={"pretrained": str(checkpoint)})


def loader_arguments(builder: Any, backbone: Any, objective: Any) -> dict[str, Any]:
    """What data needs to know of the model: the part's own `loader_arguments`, else sizes of its images."""
    draw = drawing(objective.settings)
    if hasattr(builder, "loader_arguments"):
        arguments = builder.loader_arguments(backbone)
        return arguments if draw is None else {**arguments, "encode": DrawnEncode(arguments["encode"], draw)}
    trunk = getattr(backbone, "backbone", backbone)  # of UPerNet
    size, channels = trunk.config.image_size, trunk.config.num_channels
    return {
        "image_size": size,
        "num_channels": channels,
        "num_latents": trunk.num_latents(size, size),
        "draw": draw,
        "views": objective.settings.views,
    }


def processor_of(builder: Any) -> Any:
    """What is saved beside the weights: a processor, or an image processor, where the model part has one."""
    make = getattr(builder, "processor", None) or getattr(builder, "image_processor", None)
    return make() if make is not None else None


def task_of(config: RunConfig) -> str:
    """What the run's model and objective are for. Raises ConfigError if they differ."""
    own, task = config.model.task, common_task(config.objective, config.model)
    if task is None:
        task = config.objective.task
        fitting = [kind for kind, part in MODELS.classes.items() if part.task == task]
        hint = f"; for this objective take model.kind={' or '.join(fitting)}" if fitting else ""
        raise ConfigError(f"objective {config.objective.kind} is for {task}, model {config.model.kind} for {own}{hint}")
    return task


def read_run_config(run_dir: str | Path | None) -> RunConfig:
    """RUN/config.yaml. Raises ConfigError if there is none."""
    if run_dir is None:
        raise ConfigError("fit needs a config, or a run folder to resume")
    file = resume_place(run_dir)[0] / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"no run to resume in {file.parent}: it has no config.yaml")
    return from_yaml(RunConfig, read_text(file), str(file))


def folder_of(config: RunConfig) -> Path:
    """OUTPUT_DIR/NAME; a new run gets another folder where that is taken."""
    return Path(config.output_dir).expanduser() / config.name


def write_settings(run_dir: Path, config: RunConfig, trained: tuple[int, int]) -> None:
    """config.yaml, as it is now; environment.json, as it was at the start of the run."""

    def write() -> None:
        write_text(run_dir / "config.yaml", to_yaml(config))
        if not (run_dir / "environment.json").exists():
            write_json(run_dir / "environment.json", environment(config.seed, trained))

    distributed.on_main(write)


def environment(seed: int, trained: tuple[int, int]) -> dict[str, Any]:
    """What this run ran on: versions, machine, git commit of the current folder; and how much of the backbone trains.

    trained: parameters that do, and all.
    """
    versions = {}
    for name in ("nextembed", "torch", "torchvision", "transformers", "accelerate", "datasets", "numpy", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no repository here
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL).strip()
    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "torch_build": torch.__config__.show().splitlines(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "ranks": distributed.world_size(),
        "git_commit": commit,
        "seed": seed,
        "parameters": {"trained": trained[0], "all": trained[1]},
        "command": sys.argv,
    }


def online_probe(config: RunConfig, builder: Any, backbone: Any, say: Say) -> Probe | None:
    """What runs every `train.probe_steps`: the quick probe of pretraining, a classifier's validation accuracy, Emu's
    losses on validation documents; None, said in one line, where the data has nothing to probe on."""
    if config.train.probe_steps is None or not distributed.is_main():
        return None
    if task_of(config) == "multimodal":
        if config.objective.kind not in ("emu", "next_embedding"):
            raise ConfigError(f"train.probe_steps: there is nothing to probe while {config.objective.kind} trains")
        rows = config.train.micro_batch(distributed.world_size())
        objective: Any = config.objective
        try:
            arguments = builder.loader_arguments(backbone)
            return held_out_loss(config.data, rows=rows, objective=objective.build(backbone), **arguments)
        except (ConfigError, DataError) as err:
            say(f"no validation loss during training: {err}")
            return None
    if config.objective.task == "classification":
        return quick_score(config.data, config.probe, backbone.config)
    if config.objective.task == "segmentation":
        return quick_segment(config.data, config.probe, backbone)
    try:
        data = load_data(config.data, config.probe, backbone.config)
        validation: Any = data.validation
        if all(validation[i]["label"] == IGNORE_LABEL for i in range(min(20, len(validation)))):
            raise DataError("the data has no labels")
    except (ConfigError, DataError) as err:
        say(f"no probe during training: {err}")
        return None
    return QuickProbe(data, config.probe)


def finish(run_dir: Path, config: RunConfig, probed: dict[str, float], say: Say) -> dict[str, Any]:
    """Scores, and the report, on the main rank. probed: of `probe_run`. Gives `Run.metrics`: the last logged line, and
    of pretraining the verdict and probe accuracies ("probe/linear", the same "_untrained" and "_pixels"), of a
    classifier "top1", of a segmenter "miou"."""
    lines = read_history(run_dir)
    metrics: dict[str, Any] = dict(lines[-1]) if lines else {}
    task = task_of(config)
    metrics |= probed
    if config.objective.task == "pretraining":
        metrics["verdict"] = config.objective.verdict(lines).word
    if config.probe.enabled and task not in ("multimodal", "pretraining"):
        say("scoring")
        try:
            metrics |= score_run(run_dir, config)
        except (ConfigError, DataError) as err:
            say(f"no scores: {err}")
    write_report(run_dir)
    return metrics


def probe_run(run_dir: Path, config: RunConfig, say: Say) -> dict[str, float]:
    """Of pretraining: writes probe.json; the best accuracies. Every rank has to call it, and takes its share."""
    if task_of(config) != "pretraining" or not config.probe.enabled:
        return {}
    say("probing")
    try:
        table = probe_checkpoint(run_dir, all_ranks=True)
        distributed.on_main(lambda: table.save(run_dir / "probe.json"))
    except (ConfigError, DataError) as err:
        say(f"no probes: {err}")
        return {}
    return accuracies(table)


def score_run(run_dir: Path, config: RunConfig) -> dict[str, float]:
    """Writes scores.json: the best weights on the test split, or on validation where there is none."""
    scores = score_checkpoint(run_dir, config.data, config.probe)
    scores.save(run_dir / "scores.json")
    if config.objective.task == "segmentation":
        return scores.metrics()
    return {"top1": scores.top1, "top5": scores.top5}


def accuracies(table: ProbeTable) -> dict[str, float]:
    """The best row of each probe, measured on test where there is a test split, beside its baselines."""
    found = {}
    for probe in ("linear", "knn", "attentive"):
        for name, row in (("", table.best(probe)), ("_untrained", table.best(probe, "untrained"))):
            if row is not None:
                value = row.accuracy if row.accuracy is not None else row.validation_accuracy
                found[f"probe/{probe}{name}"] = value
        pixels = table.pixels or table.pixels_validation
        if probe in pixels:
            found[f"probe/{probe}_pixels"] = pixels[probe]
    return found
