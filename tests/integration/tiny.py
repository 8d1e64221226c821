"""A model, a loader and a trainer that are small enough for tests with many steps."""

from pathlib import Path

import torch

from nextembed.core import distributed
from nextembed.core.objective import PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training.adapt import adapt
from nextembed.training.loop import Judges, Loop, Source
from nextembed.training.settings import TrainConfig
from nextembed.training.watch import quiet

STATE_FILE = "state/shard-00001-model-00001-of-00001.safetensors"  # in a checkpoint of one rank
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "layerscale_value": 1.0,
}


def images(step: int, size: int) -> torch.Tensor:
    """The whole batch of one step [size, 3, 8, 8], independent of its division."""
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def loader(batch_size: int, micro: int, start=None):
    """Endless batches of this rank; position rows contain the number of the next micro-batch on this rank."""
    world, rank = distributed.world_size(), distributed.rank()
    number = start["next"] if start else 0
    while True:
        step, part = divmod(number * micro * world, batch_size)
        pixels = images(step, batch_size)[part + rank * micro :][:micro]
        number += 1
        yield {
            "pixel_values": pixels,
            "latent_mask": torch.ones(micro, 5, dtype=torch.bool),
            "seeds": step * batch_size + part + rank * micro + torch.arange(micro),
            "position": torch.full((micro, 1), number),
        }


def advance(state, position):
    return {"next": int(position[-1, 0])}


def model(seed: int = 0, objective=None, **settings) -> PretrainingModel:
    torch.manual_seed(seed)
    backbone = NepaModel(**(MODEL | settings)).build()
    return PretrainingModel(backbone, (objective or NextEmbeddingSettings()).build(backbone))


def trainer(run_dir: Path, net=None, optim=None, start=None, watchers=(), probe=None, say=quiet, **train) -> Loop:
    values = {"batch_size": 16, "max_steps": 6, "log_steps": 2, "save_steps": 2, "device": "cpu", "trackers": []}
    config = TrainConfig(**(values | train))
    optim = optim or OptimConfig(learning_rate=1e-2 * 16 / 256, warmup_steps=2)
    batches = loader(config.batch_size, config.micro_batch(distributed.world_size()), start)
    net = net or model()
    run_dir.mkdir(parents=True, exist_ok=True)
    adapt(net.backbone, config)
    return Loop(net, config, optim, run_dir, Source(batches, advance, 64), 0, Judges(watchers, probe, say=say))


def weights(run_dir: Path, name: str = "model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run_dir / name / "model.safetensors")
