"""What each rank of the FSDP2 checkpoint test does: python shard_runner.py FOLDER.

Shards with torch's fully_shard, as accelerate does on accelerators; on the CPU accelerate itself does not.
"""

import sys
from pathlib import Path

import torch
from tiny import images, model
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from nextembed.core import distributed
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training import checkpoint
from nextembed.training.callbacks import EmaWeights
from nextembed.training.optim import OptimConfig, build_optimizer


def sharded(seed):
    net = model(seed, NextEmbeddingSettings(steps_ahead=[1, 2]))
    whole = {n: p.detach().clone() for n, p in net.named_parameters()}
    for layer in net.backbone.vit_nepa.encoder.layer:
        fully_shard(layer)
    return fully_shard(net), whole


def main(folder: Path) -> None:
    distributed.start("cpu")
    net, whole = sharded(0)
    ema = EmaWeights(0.9)
    ema.start(net.backbone, {n.removeprefix("backbone."): torch.ones_like(p) for n, p in whole.items()})
    averaged = ema.full()
    assert all(torch.equal(t, torch.ones_like(t)) for t in averaged.values())
    state = checkpoint.full_state(net)
    if distributed.is_main():
        assert all(torch.equal(state[n], p) for n, p in whole.items())
        checkpoint.save_backbone(net.backbone, checkpoint.part(state, "backbone."), folder, None)
        own = {n: t.contiguous() for n, t in checkpoint.part(state, "objective.").items()}
        checkpoint.save_file(own, folder / "objective.safetensors")
    distributed.gather_objects(None)

    other, _ = sharded(1)
    checkpoint.load_weights(folder, other)
    for (name, a), b in zip(net.named_parameters(), other.named_parameters()):
        assert torch.equal(a.full_tensor(), b[1].full_tensor()), name

    optimizers = [build_optimizer(n, OptimConfig(), 1e-2) for n in (net, other)]
    step(net, optimizers[0])
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(net, optimizers[0], options=full)
    if distributed.is_main():
        torch.save(state, folder / "optimizer.pt")
    distributed.gather_objects(None)
    stored = torch.load(folder / "optimizer.pt", weights_only=True)
    step(other, optimizers[1])
    set_optimizer_state_dict(other, optimizers[1], stored, options=StateDictOptions(full_state_dict=True))
    for _ in range(2):
        step(net, optimizers[0])
        step(other, optimizers[1])
    for (name, a), b in zip(net.named_parameters(), other.named_parameters()):
        assert torch.equal(a.full_tensor(), b[1].full_tensor()), name


def step(net, optimizer) -> None:
    torch.manual_seed(0)
    net({"pixel_values": images(0, 4), "latent_mask": torch.ones(4, 5, dtype=torch.bool)}).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
