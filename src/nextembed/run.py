"""One run: data, model, objective, training, evaluation and report together."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel

from .core import distributed
from .core.config import to_yaml
from .core.files import next_folder
from .core.objective import Objective, PretrainingModel
from .core.run_folder import DataCounts
from .core.sizes import building
from .core.types import Backbone, Loading
from .data.draws import DrawnEncode, drawing
from .data.images import ImagePart
from .data.stream import advance
from .errors import ConfigError
from .models.nepa.settings import NepaClassifier, NepaModel
from .models.parts import ModelPart, model_folder
from .objectives.saved import other_features
from .planning.fitting import fit_to_memory
from .runs import Run, RunConfig, open_run, read_run_config
from .tasks import Task, model_part, task_of
from .training import meta_start
from .training.adapt import adapt, recompute_activations, trained_parameters
from .training.banner import (
    ModelOf,
    Pace,
    announce,
    busy,
    device_line,
    found_data,
    length_line,
    minutes,
    model_line,
    place_line,
    step_seconds,
)
from .training.checkpoint import check_model, checkpoint_step, resume_place, start_state, whole_checkpoint
from .training.compiled import compiles
from .training.drawing import Drawings
from .training.folder import begun_by_launch, opened
from .training.loop import Judges, Loop, Source
from .training.memory import check_memory
from .training.record import write_settings
from .training.watch import ProgressBar, Records, Say, Watcher


def fit(config: RunConfig | None = None, resume: str | Path | None = None) -> Run:
    """Trains, evaluates and reports. All files are written into the run folder.

    Args:
        config: settings, e.g. of a recipe. A new run never touches a folder that exists: with `runs/demo` taken it goes
            to `runs/demo-2`; but what `torchrun` restarts continues in the run that it began. With `resume` None takes
            RUN/config.yaml; a changed one has to fit the same model.
        resume: a run folder; training resumes from its last checkpoint, bit for bit as if it had never stopped. Or one
            of its checkpoints, RUN/checkpoints/step-000080; later ones are renamed to unused-step-...

    Returns:
        The finished run.

    Raises:
        ConfigError: Before anything is trained.
        TrainingError: The loss is not a number, or a write failed.
        DataError: Too much of the data cannot be read.
        Interrupted: After a signal, when the state is saved.
    """
    place, named = resume_place(resume) if resume is not None else (None, None)
    if place is not None and not (place / "config.yaml").is_file():
        raise ConfigError(f"no run to resume in {place}: it has no config.yaml")
    if config is None:
        if place is None:
            raise ConfigError("fit needs a config, or a run folder to resume")
        config = read_run_config(place)
    distributed.start(config.train.device)
    place = place or distributed.on_main(lambda: begun_by_launch(config.dir, lambda own: same_settings(own, config)))
    with opened(place or config.dir, resume=place is not None) as run_dir:
        return train_in(run_dir, config, named)


def same_settings(run_dir: Path, config: RunConfig) -> bool:
    """Whether a run was started with these settings."""
    return to_yaml(read_run_config(run_dir)) == to_yaml(config)


def dry_run(config: RunConfig) -> None:
    """Prints what `fit` prints before its first step, and the expected time; trains nothing and leaves no files.

    Args:
        config: settings, e.g. of a recipe.

    Raises:
        ConfigError: as `fit`, and a setting that only the first batch shows.
        DataError: Too much of the data cannot be read.
    """
    distributed.start(config.train.device)
    with tempfile.TemporaryDirectory() as scratch:
        ready = prepare(Path(scratch), undecoded(config), None, next_folder(config.dir))
        seconds = step_seconds(ready.loop)
    announce(f"Time:    {minutes(seconds * ready.loop.max_steps)} on this machine, without the final probes")
    announce("Dry run: nothing was trained or written.")


def undecoded(config: RunConfig) -> RunConfig:
    """The same run for measuring its first steps: images are decoded when needed, not all in advance."""
    if not isinstance(config.data, ImagePart):
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": "off"})})


def fit_stage(config: RunConfig) -> None:
    """Trains a stage of another run, exactly in OUTPUT_DIR/NAME; a stopped one resumes.

    Arguments and errors as of `fit`; also raises ConfigError while another process trains the same stage.
    """
    distributed.start(config.train.device)
    folder = config.dir
    begun = distributed.on_main(folder.exists)
    if begun and not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} contains no run yet: wait for the process that is starting it, or remove the folder if "
            "there is none"
        )
    with opened(folder, resume=begun, exact=True) as run_dir:
        if not distributed.on_main((run_dir / "model").is_dir):  # otherwise another process was faster
            train_in(run_dir, config)


def train_in(run_dir: Path, config: RunConfig, named: Path | None = None) -> Run:
    """Runs in its folder, from the named checkpoint, the last one, or the start."""
    ready = train_steps(run_dir, config, named)
    metrics = finish(open_run(run_dir), ready.progress.say)

    run = Run(run_dir, run_dir, config)
    run.metrics, run.trained = metrics, ready.backbone.eval()
    return run


def train_steps(
    run_dir: Path, config: RunConfig, named: Path | None = None, watchers: Sequence[Watcher] = ()
) -> "Ready":
    """The training of `train_in`, without evaluation and report. watchers: see each logged line before it is
    written."""
    ready = prepare(run_dir, config, named)
    loop, progress = ready.loop, ready.progress
    loop.watchers[:0] = watchers
    write_settings(run_dir, config, config.seed, ready.trained, ready.data)
    try:
        loop.train(ready.checkpoint)
    finally:
        progress.close()
    loop.save_folders()
    return ready


class Ready(NamedTuple):
    """A run before its next step. trained: number of trained parameters, and of all; data: findings."""

    loop: Loop
    progress: ProgressBar
    backbone: PreTrainedModel
    checkpoint: Path | None
    trained: tuple[int, int]
    data: DataCounts


def prepare(run_dir: Path, config: RunConfig, named: Path | None, shown: Path | None = None) -> Ready:
    """Makes model, data and loop of a run, and prints each as soon as it is known. shown: the folder that is printed
    instead of its own."""
    checkpoint = distributed.on_main(lambda: whole_checkpoint(run_dir, named))
    progress, task, part = ProgressBar(), task_of(config), resumed(model_part(config), checkpoint)
    announce(place_line(shown or run_dir, config.dir, checkpoint is not None))
    announce(device_line(config.train))
    class_names, counts = open_data(config, task, part)
    torch.manual_seed(config.seed)

    # model and objective
    model = meta_start.build(partial(build_model, config, task, part, class_names), config.train.fsdp, announce)
    backbone, objective = model.backbone, model.objective
    loading = loader_arguments(part, backbone, objective)
    config = fitted(config, model, loading, class_names)
    if checkpoint is not None:
        check_model(checkpoint, backbone)
    else:
        meta_start.measure(model, partial(part.prepare, backbone, config.data))

    announce(model_words(backbone, part))

    # data and training
    data, skipped, state = cast(Any, config.data), run_dir / "skipped.jsonl", start_state(checkpoint)
    rank, ranks = distributed.rank(), distributed.world_size()
    with busy("         reading the data", announce):
        given = Loading(config.train.micro_batch(ranks), config.seed, rank, ranks, state, skipped)
        loader = data.train_loader(given, **loading)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    probed = config.train.probe_steps is not None and distributed.is_main()
    probe = task.quick(config, backbone, objective, loading, progress.say) if probed else None
    records = Records(run_dir / "metrics.jsonl", config.objective.warnings, progress.say, step)
    watchers = [records, progress, Pace(progress.say), *drawings(config, objective, run_dir)]
    loop = Loop(
        model,
        config.train,
        config.optim,
        run_dir,
        Source(loader, advance, loader.num_rows, loader.facts, loader.shares),
        config.seed,
        Judges(watchers, probe, task.metric, progress.say),
        part.processor(),
    )
    if (why := model.inexact()) and loop.num_micro_batches * distributed.world_size() > 1:
        progress.say(f"steps depend on train.micro_batch_size and the number of ranks: {why}")
    trained = trained_parameters(backbone)
    if words := trained_words(trained, objective):
        progress.say(words)
    announce(length_line(loop))
    return Ready(loop, progress, backbone, checkpoint, trained, counts)


def build_model(config: RunConfig, task: Task, part: ModelPart, class_names: Sequence[str]) -> PretrainingModel:
    """Backbone and objective, drawn from torch's random state. Raises ConfigError for settings that do not fit."""
    with building("the model"):
        backbone = part.build(class_names)
    if part is not config.model:
        backbone.config._name_or_path = model_folder(str(model_part(config).pretrained))  # base model of adapters
    adapt(backbone, config.train, config.seed)
    task.check(config, backbone)
    with building("the objective"):
        objective = config.objective.build(cast(Backbone, backbone))
    return PretrainingModel(backbone, objective)


def open_data(config: RunConfig, task: Task, part: ModelPart) -> tuple[list[str], DataCounts]:
    """Class names, and amounts of data; findings are printed."""
    with busy("         opening the data", announce):
        class_names = task.class_names(config.data)
        sees = ModelOf(size_of(part), reads_clips(part))
        found, counts = distributed.on_main(lambda: found_data(config.data, config.train.batch_size, sees))
    for line in found:
        announce(line)
    return class_names, counts


def fitted(config: RunConfig, model: PretrainingModel, loading: dict[str, Any], class_names: list[str]) -> RunConfig:
    """The run adapted to this device's memory; changes are printed."""
    length, ranks = loading.get("max_length") or loading.get("num_latents"), distributed.world_size()
    train, said = distributed.on_main(lambda: fit_to_memory(config, model, length, ranks, len(class_names)))
    if said:
        announce(said)
    if train.gradient_checkpointing and not config.train.gradient_checkpointing:
        recompute_activations(cast(PreTrainedModel, model.backbone))
    check_memory(train, config.optim, model, loading)
    train = train.model_copy(update={"compile": compiles(train, packed="max_length" in loading)})
    return config.model_copy(update={"train": train})


def drawings(config: RunConfig, objective: Objective, run_dir: Path) -> list[Drawings]:
    """Samples images during training if that is cheap: sharded weights would have to be gathered, compiled models
    compiled again."""
    if not objective.generates or config.train.fsdp or config.train.compile or not isinstance(config.data, ImagePart):
        return []
    return [Drawings(run_dir, config.train.save_steps, config.data.mean, config.data.std)]


def size_of(part: ModelPart) -> int | None:
    """Pixels a side that a new model of images sees; None where the settings do not say."""
    size = getattr(part, "image_size", None)
    return size if isinstance(size, int) else None


def reads_clips(part: ModelPart) -> bool:
    """Whether a model's images are clips."""
    return isinstance(part, NepaModel | NepaClassifier) and part.processor() is None


def resumed(part: ModelPart, checkpoint: Path | None) -> ModelPart:
    """The model part, from a checkpoint if there is one, because its `pretrained` may have moved or changed since the
    run started. The checkpoint's weights are loaded later."""
    if checkpoint is None or part.pretrained is None:
        return part
    return part.model_copy(update={"pretrained": str(checkpoint)})


def loader_arguments(part: ModelPart, backbone: PreTrainedModel, objective: Objective) -> dict[str, Any]:
    """Arguments of the data's loaders: from the model, and the objective's `draw`."""
    found, draw = part.loader_arguments(backbone), drawing(objective.settings)
    if "encode" in found:
        return found if draw is None else {**found, "encode": DrawnEncode(found["encode"], draw)}
    return {**found, "draw": draw, "views": objective.settings.views}


def model_words(backbone: PreTrainedModel, part: ModelPart) -> str:
    """Makes the model; prints a note if the pretrained objective's features are not used in fine-tuning."""
    left = other_features(part.pretrained) if part.pretrained and part.task != "pretraining" else ""
    return model_line(backbone, part.kind) + (f"\n         {left}" if left else "")


def trained_words(trained: tuple[int, int], objective: Objective) -> str:
    """The trained share, if it is not the whole model; else empty."""
    if trained[0] == 0:
        own = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        return f"the model is frozen; {own:,} parameters of the objective train"
    if trained[0] < trained[1]:
        return f"{trained[0]:,} of {trained[1]:,} parameters train ({trained[0] / trained[1]:.2%})"
    return ""


def finish(run: Run, say: Say) -> dict[str, Any]:
    """Evaluates a run, on every rank, and writes its report. Returns `Run.metrics`: the last logged line, the task's
    scores, and the word of the verdict."""
    metrics = run.metrics | run.task.finish(run, say)
    metrics |= {"verdict": run.verdict().word, "skipped": len(run.skipped())}
    distributed.on_main(run.report)
    return metrics
