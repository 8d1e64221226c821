"""Changes that are applied to a model from outside: LoRA, frozen parameters, gradient checkpointing, sharding. Models
do not know of them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..core.config import Config
from ..core.objective import PretrainingModel
from ..core.quiet import import_bitsandbytes
from ..core.sizes import MAX_WIDTH
from ..errors import ConfigError, MissingExtra, unknown
from .meta_start import delivery

BASE, LORA = ".base_layer.", ".lora_"  # in peft's parameter names: the original layer, and its adapter


class LoraSettings(Config):
    """LoRA: linear layers of the trunk keep their weights and learn an update of low rank; the head is trained fully.

    Attributes:
        rank: rank of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout of the adapters' input.
        targets: linear layers, by name or the end of a dotted name: query, key, value, dense, up_proj, gate_proj.
        within: only layers of this part of the model, e.g. "language_model".
        whole: parts of the backbone that are trained fully, e.g. ["visual", "connector"].

    Source:
        LoRA (arXiv 2106.09685).
    """

    rank: int = Field(8, ge=1, le=MAX_WIDTH)
    alpha: float = Field(16.0, gt=0, le=1e6)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field(["query", "value"], min_length=1)
    within: str | None = None
    whole: list[str] = []


class Adaptation(Protocol):
    """The settings of `TrainConfig` that change the backbone."""

    attn_implementation: str | None
    gradient_checkpointing: bool | None
    freeze: list[str]
    lora: LoraSettings | None


def adapt(backbone: PreTrainedModel, train: Adaptation, seed: int = 0) -> None:
    """Adds LoRA, freezes parameters, and sets the attention implementation and gradient checkpointing, in place.

    Called before an objective is built on the backbone, so that a teacher is a copy of the trained network.

    Args:
        backbone: of transformers.
        train: what to change.
        seed: of LoRA's random start.

    Raises:
        ConfigError: The backbone does not have the implementation, the layers or the parameters.
    """
    if train.lora is not None:
        add_lora(backbone, train.lora, seed)
    freeze(backbone, train.freeze)
    if train.attn_implementation is not None:
        try:
            backbone.set_attn_implementation(train.attn_implementation)
        except (ValueError, ImportError) as err:
            raise ConfigError(f"train.attn_implementation: {str(err).splitlines()[0]}") from None
    if train.gradient_checkpointing:
        recompute_activations(backbone)


def recompute_activations(backbone: PreTrainedModel) -> None:
    """Turns on gradient checkpointing: activations of the layers are recomputed in the backward pass."""
    # transformers 5.23 renamed it; earlier versions only know the old name
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def freeze(backbone: nn.Module, names: Sequence[str]) -> None:
    """Freezes parameters whose dotted names contain one of `names` as whole parts. Raises ConfigError for a name
    without a match, with the nearest one, or if nothing is left to train.
    """
    params = dict(backbone.named_parameters())
    for name in names:
        found = [p for full, p in params.items() if f".{name}." in f".{full}."]
        if not found:
            modules = sorted({part for full in params for part in full.split(".") if not part.isdigit()})
            raise ConfigError(unknown("train.freeze: parameter", name, modules))
        for param in found:
            param.requires_grad_(False)
    if names and not any(param.requires_grad for param in params.values()):
        raise ConfigError("train.freeze: nothing is left to train")


def trained_parameters(backbone: nn.Module) -> tuple[int, int]:
    """Number of trained parameters of the backbone, and of all."""
    sizes = [(p.numel(), p.requires_grad) for p in backbone.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def add_lora(backbone: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Puts adapters on the trunk's layers, in place; these and the head are trained, all else is frozen. Raises
    ConfigError for a missing layer, MissingExtra without peft.
    """
    import_bitsandbytes()
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "finetune") from None
    if isinstance(getattr(backbone, "backbone", None), nn.Module):
        raise ConfigError("train.lora: UPerNet's pyramid has to learn as a whole; use model.head=linear, or no LoRA")
    head = head_modules(backbone)
    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Linear) and n.partition(".")[0] not in head]
    layers = [n for n in layers if settings.within is None or f".{settings.within}." in f".{n}."]
    layers = [n for n in layers if not any(f".{part}." in f".{n}." for part in settings.whole)]
    if not layers:
        names = {part for n, _ in backbone.named_modules() for part in n.split(".") if not part.isdigit()}
        raise ConfigError(unknown("train.lora.within: part", str(settings.within), names))
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ConfigError(unknown("train.lora.targets: layer", target, {n.rpartition(".")[2] for n in layers}))
    reached = [n for n in layers if any(f".{n}".endswith(f".{target}") for target in settings.targets)]
    linears: list[Any] = [backbone.get_submodule(n) for n in reached]
    smallest = min(min(linear.in_features, linear.out_features) for linear in linears)
    if settings.rank > smallest:
        raise ConfigError(f"train.lora.rank {settings.rank}: the smallest of the layers is {smallest} wide")
    targets: Any = settings.targets
    if settings.within is not None or settings.whole:  # whole names: peft only compares their ends
        targets = reached
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=[*head, *settings.whole] or None,  # where `write_adapter` also finds them
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, backbone)
    for name, param in backbone.named_parameters():
        param.requires_grad_(LORA in name or name.partition(".")[0] in head)
    train_whole(backbone, settings.whole)


def train_whole(backbone: nn.Module, parts: Sequence[str]) -> None:
    """Makes parts of a model trainable. Raises ConfigError for a missing one."""
    for part in parts:
        found = [param for name, param in backbone.named_parameters() if f".{part}." in f".{name}"]
        if not found:
            names = {word for name, _ in backbone.named_modules() for word in name.split(".") if not word.isdigit()}
            raise ConfigError(unknown("train.lora.whole: part", part, names))
        for param in found:
            param.requires_grad_(True)


def head_modules(backbone: nn.Module) -> list[str]:
    """Names of the modules on top of a Hugging Face model's trunk."""
    trunk = backbone.base_model_prefix if isinstance(backbone, PreTrainedModel) else ""
    children = [name for name, child in backbone.named_children() if any(True for _ in child.parameters())]
    return [name for name in children if name != trunk] if trunk in children else []


def has_lora(backbone: nn.Module) -> bool:
    return any(LORA in name for name, _ in backbone.named_parameters())


def merged(backbone: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a backbone with LoRA merged into those of the plain model. Others are unchanged."""
    if not has_lora(backbone):
        return state
    config: Any = backbone.peft_config["default"]  # of peft
    plain = {name.replace(BASE, "."): value for name, value in state.items() if LORA not in name}
    for name, down in state.items():
        stem, is_down, _ = name.partition(f"{LORA}A.")
        if is_down:
            up = state[name.replace(f"{LORA}A.", f"{LORA}B.")]
            plain[f"{stem}.weight"] = plain[f"{stem}.weight"] + config.lora_alpha / config.r * (up @ down)
    return plain


def write_adapter(backbone: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """A folder for `peft.PeftModel.from_pretrained(base, folder)`: the adapters, the head, and fully trained parts."""
    config: Any = copy.copy(backbone.peft_config["default"])
    kept = sorted(config.exclude_modules or [])
    head = [n for n, _ in backbone.named_modules() if any(f".{n}".endswith(f".{part}") for part in kept)]
    config.target_modules = sorted(config.target_modules)
    config.modules_to_save, config.exclude_modules, config.inference_mode = head or None, None, True
    config.base_model_name_or_path = backbone.config._name_or_path or None
    config.save_pretrained(str(folder))
    own = {n: t for n, t in state.items() if LORA in n or any(n.startswith(f"{part}.") for part in head)}
    names = {n: f"base_model.model.{n.replace('.default.', '.') if LORA in n else n}" for n in own}
    save_file({names[n]: t.contiguous().clone() for n, t in own.items()}, folder / "adapter_model.safetensors")


def shard(model: PretrainingModel) -> PretrainingModel:
    """Shards weights, gradients and optimizer over the ranks (FSDP2), on this rank's device; blocks of the backbone are
    gathered in turn. Every rank must call it. Raises ConfigError for a model that has a single number among its
    parameters, which FSDP2 cannot shard."""
    if single := [name for name, p in model.named_parameters() if p.ndim == 0]:
        name = single[0].removeprefix("backbone.")
        raise ConfigError(
            f"train.fsdp: the model's {name} is a single number, which cannot be sharded; unset train.fsdp"
        )
    names = set(model.backbone._no_split_modules or [])  # type: ignore[union-attr, arg-type]
    deliver = delivery(model)
    for module in list(model.backbone.modules()):
        if type(module).__name__ in names:
            deliver(module)
            fully_shard(module)
    deliver(model)
    fully_shard(model)
    register_fsdp_forward_method(model, "prepare")
    return model


@contextmanager
def only_last_syncs(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are synchronised between ranks only with the last micro batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield
