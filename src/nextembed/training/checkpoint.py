"""Checkpoints: folders that are written atomically, with everything for an exact resume.

RUN/checkpoints/step-000100/
  config.json, model.safetensors, preprocessor_config.json   the backbone, for `from_pretrained`
  ema/                                                        the same for its averaged weights
  objective/                                                  of one that reads features itself
  state/                                                      all tensors that training continues from; see `state`
  progress.json                                               step; by rank: state of the data, means since the last log
  checksums.json                                              of all of these, written last, compared before resuming
RUN/best/                                                     a supervised run's best weights so far, and their score
"""

import itertools
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..core import distributed, files
from ..core.files import new_folder, saving, write_json
from ..core.objective import FOLDER, PretrainingModel
from ..core.quiet import no_progress_bar
from ..core.run_folder import TEACHER
from ..data.stream import valid_state
from ..errors import ConfigError, TrainingError
from .adapt import LORA, has_lora, merged, write_adapter
from .checksums import NAME as CHECKSUMS
from .checksums import damage, reading, write_checksums
from .state import load_tensors, save_tensors, start_moments, stored_shapes, tensors_of
from .watch import EmaWeights


class Saves(Protocol):
    """A processor."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], /) -> object: ...


STATE = "state"
UNIMPORTANT = {
    "architectures",
    "dtype",
    "transformers_version",
    "_name_or_path",
}  # settings that may differ in a resumed run


def clean(run_dir: Path) -> None:
    """Removes half-written files of a killed process, and restores what it was about to replace. Only for the process
    that holds the run's lock."""
    files.clean(run_dir)
    files.clean(run_dir / "checkpoints")


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, oldest first, without links to other places."""
    found = [p for p in (run_dir / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    found = [p for p in found if p.is_dir() and not p.is_symlink()]
    return sorted(found, key=checkpoint_step)


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint; every folder of that name is complete."""
    return next(reversed(checkpoints(run_dir)), None)


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def resume_place(path: str | Path) -> tuple[Path, Path | None]:
    """What `--resume` names: a run folder, and of RUN/checkpoints/step-000080 that checkpoint."""
    path = Path(path).expanduser()
    if re.fullmatch(r"step-\d+", path.name) and path.parent.name == "checkpoints":
        return path.parent.parent, path
    return path, None


def whole_checkpoint(run_dir: Path, named: Path | None = None) -> Path | None:
    """The checkpoint to resume from: the named one, else the newest; None if there is none. Raises ConfigError if it is
    missing or damaged, with the command that resumes from the one before it.
    """
    folder = named or last_checkpoint(run_dir)
    if folder is None:
        return None
    if not folder.is_dir():
        there = ", ".join(path.name for path in checkpoints(run_dir)) or "none"
        raise ConfigError(f"no such checkpoint: {folder}; there are: {there}")
    if not (reason := damage(folder)):
        return folder
    before = [path for path in checkpoints(run_dir) if checkpoint_step(path) < checkpoint_step(folder)]
    good = next((path for path in reversed(before) if not damage(path)), None)
    command = f"nextembed train --resume {shlex.quote(str(good))}"
    then = f"resume from the previous one: {command}" if good else "no earlier checkpoint is intact"
    raise ConfigError(f"{reason}; {then}")


def set_aside(run_dir: Path, after: int) -> None:
    """Renames the checkpoints of later steps to unused-step-..., because a run resumed from step `after` saves its
    own."""
    for folder in checkpoints(run_dir):
        if checkpoint_step(folder) > after:
            names = (f"unused-{folder.name}" + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
            os.rename(folder, next(path for name in names if not (path := folder.with_name(name)).exists()))


def prune(run_dir: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints; folders that this library did not write stay."""
    written = [folder for folder in checkpoints(run_dir) if (folder / CHECKSUMS).is_file()]
    for folder in written[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_of_all(target: Path, what: str) -> Iterator[Path]:
    """A temporary folder that all ranks write into; it becomes `target` when the block ends without an error on all of
    them. Every rank must call it. An error on one is a TrainingError on all, so that none waits for ever.
    """
    run_dir = target.parent.parent if target.parent.name == "checkpoints" else target.parent
    with ExitStack() as stack:

        def begin() -> Path:
            with saving(run_dir, what):
                return stack.enter_context(new_folder(target, replace=True))

        def end() -> None:
            with saving(run_dir, what):
                stack.close()

        scratch, error = distributed.on_main(begin), ""
        try:
            with saving(run_dir, what):
                yield scratch
        except TrainingError as err:
            error = str(err)
        if error := next(filter(None, distributed.gather_objects(error)), ""):
            raise TrainingError(error)
        distributed.on_main(end)


def write_model(
    folder: Path, backbone: PreTrainedModel, averaged: Mapping[str, Tensor] | None, image_processor: Saves | None
) -> None:
    """A folder for `from_pretrained`: trained or averaged weights, config and image processor. LoRA is merged into the
    weights, and also saved in adapter/ for peft. Every rank must call it: of a sharded model each writes its part, and
    no rank ever holds all.
    """
    state = {name: value.detach() for name, value in backbone.state_dict().items()} | dict(averaged or {})
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
    if not has_lora(backbone) and any(isinstance(value, DTensor) for value in state.values()):
        distributed.wait()
        save_tensors(folder, {name: state[name] for name in untied(backbone, state)}, whole=True)
        if distributed.is_main():
            shutil.rmtree(folder / "sharded")
            backbone.config.architectures = [type(backbone).__name__]
            backbone.config.save_pretrained(folder)
    else:
        state = {name: whole(value) for name, value in state.items()}
        if distributed.is_main():
            with no_progress_bar():
                backbone.save_pretrained(folder, state_dict=dict(merged(backbone, state)))  # it empties its argument
    if distributed.is_main():
        if has_lora(backbone):
            write_adapter(backbone, state, folder / "adapter")
        if image_processor is not None:
            image_processor.save_pretrained(folder)


def whole(value: Tensor) -> Tensor:
    """A tensor on the CPU, joined if it is sharded; then every rank must call it."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def untied(backbone: PreTrainedModel, state: Mapping[str, Tensor]) -> list[str]:
    """Names of weights without aliases of other names."""
    tied = dict(backbone.all_tied_weights_keys or {})
    return [name for name in state if name not in tied]


@dataclass
class Progress:
    """Progress of a run. ranks: of each, "data" (the state of its loader) and "averages" ({name: [sum, count]})."""

    step: int
    max_steps: int
    ranks: list[dict[str, Any]]


def save(
    folder: Path,
    model: PretrainingModel,
    optimizer: torch.optim.Optimizer,
    ema: EmaWeights | None,
    progress: Progress,
    image_processor: Saves | None,
) -> None:
    """Writes one checkpoint, in the layout above. Every rank must call it."""
    backbone = model.backbone
    averaged = None if ema is None else ema.weights
    with folder_of_all(folder, f"saving step {progress.step}") as scratch:
        if distributed.is_main():
            (scratch / STATE).mkdir()
        distributed.wait()
        save_tensors(scratch / STATE, tensors_of(model, optimizer, averaged))
        write_model(scratch, backbone, None, image_processor)
        if averaged:
            write_model(scratch / "ema", backbone, averaged, image_processor)
        write_reader(scratch, model)
        distributed.wait()
        if distributed.is_main():
            write_json(scratch / "progress.json", asdict(progress))
            write_checksums(scratch)


def write_reader(folder: Path, model: PretrainingModel) -> None:
    """Saves the objective if it provides features itself or generates. Every rank must call it."""
    if not (model.objective.reads_itself or model.objective.generates):
        return
    parts = model.objective.folders(own_state(model)).get(FOLDER)
    if isinstance(parts, tuple) and distributed.is_main():
        (folder / FOLDER).mkdir()
        save_part(folder / FOLDER, *parts)


def own_state(model: PretrainingModel) -> dict[str, Tensor]:
    """Of the objective. Every rank must call it."""
    return {name: whole(value) for name, value in model.objective.state_dict().items()}


def save_models(run_dir: Path, model: PretrainingModel, ema: EmaWeights | None, image_processor: Saves | None) -> None:
    """Writes RUN/model, RUN/ema, RUN/teacher and folders of the objective. Every rank must call it."""
    backbone = model.backbone
    weights: dict[str, Mapping[str, Tensor] | None] = {"model": None} | (
        {"ema": ema.weights} if ema and ema.weights else {}
    )
    for name, averaged in weights.items():
        with folder_of_all(run_dir / name, "saving the model") as scratch:
            write_model(scratch, backbone, averaged, image_processor)
    if (teacher := model.objective.teacher_network()) is not None:
        with folder_of_all(run_dir / TEACHER, "saving the teacher") as scratch:
            write_model(scratch, teacher, None, image_processor)
    for name, parts in model.objective.folders(own_state(model)).items():
        with folder_of_all(run_dir / name, f"saving {name}") as scratch:
            if distributed.is_main():
                parts(scratch) if callable(parts) else save_part(scratch, *parts)


class BestWeights:
    """RUN/best: the weights with the highest score so far, for `from_pretrained`, with score.json. Called with scores
    and the step on rank 0. metric: a name among the scores, "eval/accuracy"; with averaged weights, theirs
    ("eval/ema_accuracy") decide and are kept. The first of equal ones stays, so that a resumed run keeps the same as an
    uninterrupted one.
    """

    def __init__(
        self,
        run_dir: Path,
        metric: str,
        ema: EmaWeights | None,
        backbone: PreTrainedModel,
        image_processor: Saves | None,
    ):
        self.folder, self.ema, self.backbone, self.image_processor = run_dir / "best", ema, backbone, image_processor
        self.metric = metric if ema is None else metric.replace("/", "/ema_", 1)
        self.value()  # in a resumed run, an unreadable file is found now, not at the first probe

    def __call__(self, scores: dict[str, float], step: int) -> None:
        value = scores[self.metric]
        if not value > self.value():  # also if it is nan
            return
        averaged = None if self.ema is None else self.ema.weights
        with saving(self.folder.parent, "saving the best weights"), new_folder(self.folder, replace=True) as scratch:
            write_model(scratch, self.backbone, averaged, self.image_processor)
            score = {"step": step, "metric": self.metric, "value": value, "weights": "ema" if self.ema else "raw"}
            write_json(scratch / "score.json", score)

    def value(self) -> float:
        """The score of the kept weights; -inf if there are none."""
        file = self.folder / "score.json"
        if not file.is_file():
            return float("-inf")
        with reading(file):
            value = json.loads(file.read_bytes())["value"]
            if not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            return value


def save_part(folder: Path, values: dict[str, object], state: dict[str, Tensor]) -> None:
    """Writes config.json and model.safetensors of a folder of the objective."""
    write_json(folder / "config.json", values)
    save_file({n: t.contiguous().clone() for n, t in state.items()}, folder / "model.safetensors")


def load(folder: Path, model: PretrainingModel, optimizer: torch.optim.Optimizer, ema: EmaWeights | None) -> Progress:
    """Loads a checkpoint's tensors, each rank its own part, and returns its progress. Every rank must call it. Averaged
    weights that the checkpoint lacks start from its weights. Raises ConfigError if it belongs to another model or
    objective, TrainingError for files that cannot be read.
    """
    backbone = model.backbone
    progress = read_progress(folder)
    check_model(folder, backbone)
    with reading(folder / STATE):
        stored = stored_shapes(folder / STATE)
    if any(LORA in name for name in stored) != has_lora(backbone):
        raise ConfigError(
            f"{folder} was trained {'without' if has_lora(backbone) else 'with'} train.lora, but this run is not"
        )
    start_moments(model, optimizer, stored, progress.step)
    wanted = tensors_of(model, optimizer, None if ema is None else ema.weights)
    if ema is not None and not any(name.startswith("ema.") for name in stored):
        wanted = {name: value for name, value in wanted.items() if not name.startswith("ema.")}
    names = {name for name in stored if name.startswith("model.")} ^ {n for n in wanted if n.startswith("model.")}
    wrong = sorted(names) or [n for n, t in wanted.items() if stored.get(n) != (t.shape or torch.Size([1]))]
    if wrong:
        name = wrong[0].removeprefix("model.")
        raise ConfigError(
            f"{folder / STATE} does not fit this config: {name} ({len(wrong)} in all); see its config.json"
        )
    with reading(folder / STATE):
        load_tensors(folder / STATE, wanted)
    if ema is not None and not any(name.startswith("ema.") for name in stored):
        ema.start(backbone)
    return progress


def check_model(folder: Path, backbone: PreTrainedModel) -> None:
    """Raises ConfigError naming the first setting in which a checkpoint's model differs from the backbone."""
    with reading(folder / "config.json"):
        ours, theirs = settings_of(backbone.config), settings_of(type(backbone.config).from_pretrained(folder))
    for name in (n for n in ours if n.rpartition(".")[2] not in UNIMPORTANT):
        if ours[name] != theirs.get(name):
            raise ConfigError(f"{folder} was trained with {name} {theirs.get(name)}; the config says {ours[name]}")


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A model's configuration as plain values; those of a backbone inside it (UPerNet's) with dotted names."""
    values = config.to_dict()
    inner = values.pop("backbone_config", None) or {}
    return values | {f"backbone_config.{name}": value for name, value in inner.items()}


def read_progress(folder: Path) -> Progress:
    """Reads progress.json. Raises TrainingError if it is not that of this step."""
    file = folder / "progress.json"
    with reading(file):
        values = json.loads(file.read_bytes())
        names = {field.name for field in fields(Progress)}
        if not isinstance(values, dict) or values.keys() != names:
            raise ValueError(f"it should contain {', '.join(sorted(names))}")
        progress = Progress(**values)
        if not isinstance(progress.step, int) or progress.step != checkpoint_step(folder):
            raise ValueError(f"it was written at step {progress.step}")
        if not isinstance(progress.ranks, list) or not progress.ranks:
            raise ValueError("it has no entry for any rank")
        for rank in progress.ranks:
            if not valid_state(rank["data"]):
                raise ValueError("a rank has no position in the data")
            means = rank["averages"]  # null in JSON stands for values that are not finite
            rank["averages"] = {n: [math.nan if v is None else v + 0.0 for v in pair] for n, pair in means.items()}
            if any(len(pair) != 2 for pair in means.values()):
                raise ValueError("a running mean is not a [sum, count] pair")
    return progress


def start_state(folder: Path | None) -> dict[str, Any] | None:
    """The position of this rank's data; None without a checkpoint. That of rank 0 if there are more ranks now."""
    if folder is None:
        return None
    ranks = read_progress(folder).ranks
    state: dict[str, Any] = ranks[distributed.rank() if distributed.rank() < len(ranks) else 0]["data"]
    return state
