"""Checkpoints: Hugging Face folders that appear whole or not at all, with all that an exact resume needs.

RUN/checkpoints/step-000100/
  config.json, model.safetensors, preprocessor_config.json   the backbone, for `from_pretrained`
  ema/                                                        the same for its averaged weights
  lora.safetensors                                            of a run with LoRA: what merging has lost, for resuming
  objective.safetensors                                       what only the objective owns, if anything
  optimizer.pt, scheduler.pt, trainer_state.json              plain tensors and numbers, no pickled code
  ranks.json                                                  by rank: state of the data, means since the last log
  checksums.json                                              of all of these, written last, compared before resuming
RUN/best/                                                     a supervised run's best weights so far, and their score
"""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import PreTrainedModel, TrainerControl, TrainerState

from ..core import distributed, files
from ..core.files import new_folder, write_error, write_json
from ..core.quiet import no_progress_bar
from ..data.stream import valid_state
from ..errors import ConfigError, TrainingError
from .adapt import has_lora, merged, unmerged, with_unmerged, write_adapter
from .checksums import damage, difference, reading, write_checksums

LORA_FILE = "lora.safetensors"
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
UNIMPORTANT = {"architectures", "dtype", "transformers_version", "_name_or_path"}  # may differ in a resumed run


@contextmanager
def saving(run_dir: Path, what: str) -> Iterator[None]:
    """What goes wrong while something is written to a run folder as a TrainingError of one line. A run folder that was
    deleted meanwhile is not made anew: it would hold half a run."""
    try:
        run_dir.stat()
        yield
    except (OSError, RuntimeError, SafetensorError, ConfigError) as err:
        reason = write_error(err) if run_dir.is_dir() else f"the run folder {run_dir} is gone"
        raise TrainingError(f"{what} failed: {reason}") from err


def clean(run_dir: Path) -> None:
    """Removes what a killed process left half-written, and puts back what it was about to replace.

    Only for the process that holds the run's lock."""
    files.clean(run_dir)
    files.clean(run_dir / "checkpoints")


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, oldest first: folders, no links to somewhere else."""
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
    """The checkpoint to go on from: the named one, else the newest; None where there is none.

    Raises ConfigError if it is not there or damaged, with the command that goes on from the one before it.
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
    then = f"go on from the one before: nextembed train --resume {good}" if good else "none before it is whole"
    raise ConfigError(f"{reason}; {then}")


def set_aside(run_dir: Path, after: int) -> None:
    """Renames the checkpoints of later steps to unused-step-...: a run that goes on from step `after` saves its own."""
    for folder in checkpoints(run_dir):
        if checkpoint_step(folder) > after:
            names = (f"unused-{folder.name}" + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
            os.rename(folder, next(path for name in names if not (path := folder.with_name(name)).exists()))


def prune(run_dir: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints."""
    for folder in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers on the CPU of rank 0, whole even if sharded. Every rank must call it."""
    return cast(dict[str, Tensor], get_model_state_dict(model, options=FULL))


def save_backbone(backbone: PreTrainedModel, state: dict[str, Tensor], folder: Path, image_processor: Any) -> None:
    """A folder for `from_pretrained`: weights `state` [names of `backbone`], config and image processor.

    LoRA is merged into the weights, and beside them in adapter/ for peft.
    """
    with no_progress_bar():
        backbone.save_pretrained(folder, state_dict=dict(merged(backbone, state)))  # it empties what it is given
    if has_lora(backbone):
        write_adapter(backbone, state, folder / "adapter")
    if image_processor is not None:
        image_processor.save_pretrained(folder)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def write(folder: Path, model: Any, state: dict[str, Tensor], ema: dict[str, Tensor] | None, image_processor: Any,
          optimizer: dict, scheduler: dict, ranks: list[dict], trainer_state: Any) -> None:  # fmt: skip
    """Writes one checkpoint as the module's docstring shows it; called on rank 0 with everything gathered."""
    weights = part(state, "backbone.")
    save_backbone(model.backbone, weights, folder, image_processor)
    if ema is not None:
        save_backbone(model.backbone, weights | ema, folder / "ema", image_processor)
    if has_lora(model.backbone):
        save_file(unmerged(weights), folder / LORA_FILE)
        if ema is not None:
            save_file(unmerged(weights | ema), folder / "ema" / LORA_FILE)
    own = {n: t.contiguous().clone() for n, t in part(state, "objective.").items()}
    if own:
        save_file(own, folder / "objective.safetensors")
    torch.save(optimizer, folder / "optimizer.pt")
    torch.save(scheduler, folder / "scheduler.pt")
    write_json(folder / "ranks.json", ranks, indent=None)
    trainer_state.save_to_json(str(folder / "trainer_state.json"))
    write_checksums(folder)


class BestWeights:
    """RUN/best: the weights that scored highest so far, for `from_pretrained`; score.json beside them says when.

    Called with scores and the step on rank 0. metric: a name among the scores, "eval/accuracy"; where there are
    averaged weights, theirs ("eval/ema_accuracy") are judged and kept. The first of equals stays, so that a resumed run
    keeps what a run that never stopped would have kept.
    """

    def __init__(self, run_dir: Path, metric: str, ema: Any, backbone: Any, image_processor: Any):
        self.folder, self.ema, self.backbone, self.image_processor = run_dir / "best", ema, backbone, image_processor
        self.metric = metric if ema is None else metric.replace("/", "/ema_", 1)
        self.value()  # of a resumed run: a file that cannot be read is found now, not at the first probe

    def __call__(self, scores: dict[str, float], step: int) -> None:
        value = scores[self.metric]
        if not value > self.value():  # also where it is not a number
            return
        state = {name: tensor.detach().cpu() for name, tensor in self.backbone.state_dict().items()}
        state |= self.ema.full() if self.ema is not None else {}
        with saving(self.folder.parent, "saving the best weights"), new_folder(self.folder, replace=True) as scratch:
            save_backbone(self.backbone, state, scratch, self.image_processor)
            score = {"step": step, "metric": self.metric, "value": value, "weights": "ema" if self.ema else "raw"}
            write_json(scratch / "score.json", score)

    def value(self) -> float:
        """The score of what is kept; -inf if nothing is."""
        file = self.folder / "score.json"
        if not file.is_file():
            return float("-inf")
        with reading(file):
            value = json.loads(file.read_bytes())["value"]
            if not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            return value


def save_part(folder: Path, values: dict[str, Any], state: dict[str, Tensor]) -> None:
    """config.json and model.safetensors of what an objective keeps beside the model."""
    write_json(folder / "config.json", values)
    save_file({n: t.contiguous().clone() for n, t in state.items()}, folder / "model.safetensors")


def load_weights(folder: Path, model: nn.Module) -> None:
    """Puts a checkpoint's weights into a PretrainingModel (sharded or not).

    Raises ConfigError if the checkpoint is of another model or objective.
    """
    backbone: Any = model.backbone
    check_model(folder, backbone)
    with_lora = (folder / LORA_FILE).is_file()
    if with_lora != has_lora(backbone):
        raise ConfigError(f"{folder} was trained {'with' if with_lora else 'without'} train.lora, this run is not")
    stored = read_backbone(folder, backbone)
    state: dict[str, Any] = {f"backbone.{n}": t for n, t in stored.items()}
    own = folder / "objective.safetensors"
    if own.is_file():
        state |= {f"objective.{n}": t for n, t in read_tensors(own).items()}
    expected = {n: t.shape for n, t in model.state_dict().items()}
    wrong = sorted(expected.keys() ^ state.keys()) or [n for n, t in state.items() if t.shape != expected[n]]
    if wrong:
        raise ConfigError(f"{folder} does not fit this config: {wrong[0]} ({len(wrong)} in all); see its config.json")
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def read_backbone(folder: Path, backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of a checkpoint (or of its `ema` folder) by the backbone's own names."""
    file = folder / "model.safetensors"
    with no_progress_bar(), reading(file):
        stored, found = cast(Any, type(backbone)).from_pretrained(
            folder, config=backbone.config, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, trust_remote_code=False,
        )  # fmt: skip
        misshaped = [name for name, *_ in found["mismatched_keys"]]
        for names, what in ((found["missing_keys"], "no"), (found["unexpected_keys"], "a"), (misshaped, "another")):
            if names:
                raise ValueError(f"it is of another model, with {what} {min(names)}")
    own = folder / LORA_FILE
    return with_unmerged(stored.state_dict(), read_tensors(own)) if own.is_file() else stored.state_dict()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    with reading(file):
        return load_file(file)


def check_model(folder: Path, backbone: PreTrainedModel) -> None:
    """Raises ConfigError naming the first setting in which a checkpoint's model differs from the backbone."""
    with reading(folder / "config.json"):
        ours, theirs = settings_of(backbone.config), settings_of(type(backbone.config).from_pretrained(folder))
    for name in (n for n in ours if n.rpartition(".")[2] not in UNIMPORTANT):
        if ours[name] != theirs.get(name):
            raise ConfigError(f"{folder} was trained with {name} {theirs.get(name)}; the config says {ours[name]}")


def settings_of(config: Any) -> dict[str, Any]:
    """A model's configuration as plain values; those of a backbone inside it (UPerNet's) with dotted names."""
    values = config.to_dict()
    inner = values.pop("backbone_config", None) or {}
    return values | {f"backbone_config.{name}": value for name, value in inner.items()}


def read_ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank had: {"data": state of its data, "averages": {name: [sum, count]}}."""
    file = folder / "ranks.json"
    with reading(file):
        ranks = json.loads(file.read_bytes())
        if not ranks:
            raise ValueError("it names no rank")
        for rank in ranks:
            if not valid_state(rank["data"]):
                raise ValueError("it holds no place in the data")
            means = rank["averages"]  # JSON has null for what is not finite
            rank["averages"] = {n: [math.nan if v is None else v + 0.0 for v in pair] for n, pair in means.items()}
            if any(len(pair) != 2 for pair in means.values()):
                raise ValueError("it holds means that are no pairs")
    return ranks


def read_state(file: Path, own: Any) -> Any:
    """What torch has saved, built like `own`, which rank 0 has whole. Every rank must call it."""
    with reading(file):
        stored = torch.load(file, map_location="cpu", weights_only=True)
    reason = distributed.broadcast_object(difference(stored, own) if distributed.is_main() else "")
    if reason:
        raise TrainingError(f"{file} does not fit this run: {reason}")
    return stored


def check_trainer_state(folder: Path) -> None:
    """Raises TrainingError if trainer_state.json is not what the trainer saved at this step."""
    file = folder / "trainer_state.json"
    with reading(file):
        stored = json.loads(file.read_bytes())
        own = vars(TrainerState(stateful_callbacks=cast(Any, {"TrainerControl": TrainerControl().state()})))
        either = ("epoch", "train_batch_size")  # a number, or None
        own |= {name: stored[name] for name in either if type(stored[name]) in (int, float, type(None))}
        if reason := difference(stored, own):
            raise ValueError(reason)
        if stored["global_step"] != checkpoint_step(folder):
            raise ValueError(f"it is of step {stored['global_step']}")


def start_state(folder: Path | None) -> dict[str, Any] | None:
    """Where this rank's data goes on; None without a checkpoint. Of rank 0 if there are more ranks now than then."""
    if folder is None:
        return None
    ranks = read_ranks(folder)
    return ranks[distributed.rank() if distributed.rank() < len(ranks) else 0]["data"]
