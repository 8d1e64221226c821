"""The script of each rank in the FSDP2 checkpoint test: python shard_runner.py FOLDER.

A sharded run is saved, resumes exactly from its checkpoint, and saves complete models for `from_pretrained`; each
rank writes and reads its own part.
"""

import sys
from pathlib import Path

import torch
from tiny import images, model
from torch.distributed.tensor import DTensor

from nextembed.core import distributed
from nextembed.core.optim import OptimConfig
from nextembed.models.nepa import ViTNepaForPreTraining
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training import checkpoint
from nextembed.training.adapt import shard
from nextembed.training.optim import build_optimizer
from nextembed.training.watch import EmaWeights


def sharded(seed, kind, cut=shard):
    net = cut(model(seed, NextEmbeddingSettings(steps_ahead=[1, 2])))
    return net, build_optimizer(net, OptimConfig(kind=kind, learning_rate=1e-2)), EmaWeights(0.9, net.backbone)


def step(net, optimizer, ema, number):
    torch.manual_seed(0)
    net({"pixel_values": images(number, 4), "latent_mask": torch.ones(4, 5, dtype=torch.bool)}).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.update(net.backbone, number)


def main(folder: Path) -> None:
    distributed.start("cpu")
    continues_and_saves(folder, "adamw")
    continues_and_saves(folder / "muon", "muon")
    alike()


def alike() -> None:
    """A Muon step over shards equals that over whole matrices; it is in bf16, here for matrices of rank about 5."""
    cut, whole = sharded(0, "muon"), sharded(0, "muon", cut=lambda net: net)
    start = {name: value.clone() for name, value in whole[0].named_parameters()}
    step(*cut, 1)
    step(*whole, 1)
    found = dict(cut[0].named_parameters())
    for name, expected in whole[0].named_parameters():
        moved, wanted = found[name].full_tensor() - start[name], expected - start[name]
        assert torch.linalg.norm(moved - wanted) < 0.25 * torch.linalg.norm(wanted) + 1e-6, name


def continues_and_saves(folder: Path, kind: str) -> None:
    folder.mkdir(exist_ok=True)
    first, second = sharded(0, kind), sharded(1, kind)
    for number in (1, 2):
        step(*first, number)
    target = checkpoint.step_dir(folder, 2)
    progress = checkpoint.Progress(2, 4, [{"data": {"next": 4}, "averages": {}}] * 2)
    checkpoint.save(target, *first, progress, None)
    assert len(list((target / "state").glob("shard-0000[12]-*.safetensors"))) == 2
    checkpoint.load(target, *second)
    for number in (3, 4):
        step(*first, number)
        step(*second, number)
    for (name, a), b in zip(first[0].named_parameters(), second[0].parameters()):
        assert isinstance(b, DTensor) and torch.equal(a.full_tensor(), b.full_tensor()), name
    for name, value in first[2].weights.items():
        assert torch.equal(value.full_tensor(), second[2].weights[name].full_tensor()), name

    checkpoint.save_models(folder, first[0], first[2], None)
    whole = {name: value.full_tensor() for name, value in first[0].backbone.named_parameters()}
    averaged = {name: value.full_tensor() for name, value in first[2].weights.items()}
    for name, expected in (("model", whole), ("ema", averaged)):
        found = dict(ViTNepaForPreTraining.from_pretrained(folder / name).named_parameters())
        assert found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items()), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
