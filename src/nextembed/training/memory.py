"""A lower bound of a run's memory: runs that cannot fit are refused before anything is allocated."""

from typing import Any

import torch

from ..core import distributed
from ..core.objective import PretrainingModel
from ..core.optim import OptimConfig
from ..core.sizes import check_fits
from ..core.types import LayeredConfig
from .eight_bit import state_bytes
from .settings import TrainConfig

FLOAT, INTEGER = 4, 8  # bytes


def check_memory(config: TrainConfig, optim: OptimConfig, model: PretrainingModel, data: dict[str, Any]) -> None:
    """Raises ConfigError if weights with gradients and the optimizer's state, the batches of a step, or the latents and
    masks of one micro batch alone are larger than the memory that is to hold them.

    data: arguments of `train_loader` from the model: image_size, num_channels and num_latents, or max_length.
    """
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    device, ranks = "cpu" if cpu else "cuda", distributed.world_size()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    weights += sum(
        p.numel() * p.element_size() + state_bytes(p.numel(), optim.kind) for p in model.parameters() if p.requires_grad
    )
    check_fits(
        "the model, its gradients and the optimizer's state need", weights // (ranks if config.fsdp else 1), device
    )
    length, packed = data.get("max_length") or data.get("num_latents"), "max_length" in data
    if length is None:  # a user's own model
        return
    sample = INTEGER * length if packed else FLOAT * data["num_channels"] * data["image_size"] ** 2
    batch, micro = config.batch_size // ranks, config.micro_batch(ranks)
    check_fits(f"train.batch_size {config.batch_size:,}: the inputs of a step need", batch * sample)
    config_of = model.backbone.config
    width = config_of.hidden_size if isinstance(config_of, LayeredConfig) else 1
    check_fits(
        f"{micro:,} samples of {length:,} latents per forward pass (train.micro_batch_size) need",
        micro * length * width * FLOAT,
        device,
    )
    in_blocks = cpu and not config.compile  # "sdpa" attends document by document, without a mask (nn/documents.py)
    masked = config.attn_implementation == "eager" or (config.attn_implementation in (None, "sdpa") and not in_blocks)
    if packed and masked:
        mask = micro * length**2 * (1 + FLOAT)
        check_fits(f"{micro:,} rows of model.max_length {length:,}: their attention masks need", mask, device)
