"""torch.compile in the training loop: the same training, with a fallback to eager mode if compilation fails."""

import pytest
import torch
from tiny import model, trainer

from nextembed.core.optim import OptimConfig
from nextembed.training import compiled
from nextembed.training.settings import TrainConfig
from nextembed.training.watch import quiet

OPTIM = OptimConfig(learning_rate=1e-1 * 16 / 256, warmup_steps=2, eps=1e-3)


def trained(run_dir, say=quiet, **settings):
    net = model(drop_path_prob=0.2)
    loop = trainer(run_dir, net, OPTIM, micro_batch_size=8, max_steps=3, say=say, **settings)
    loop.train()
    return dict(net.named_parameters())


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_weights_and_reports_the_time(tmp_path):
    said: list[str] = []
    plain, fast = trained(tmp_path / "plain"), trained(tmp_path / "fast", said.append, compile=True)
    for name, weight in plain.items():
        assert (fast[name] - weight).abs().max() <= 1e-4 * weight.abs().max().clamp(min=1e-3), name
    assert len(said) == 1 and said[0].startswith("torch.compile: the first step took")


def test_a_failed_compilation_falls_back_with_a_message(tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no such kernel\nand more")

    plain = trained(tmp_path / "plain")
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend=broken))
    said: list[str] = []
    found = trained(tmp_path / "broken", said.append, compile=True)
    assert all(found[name].equal(weight) for name, weight in plain.items())
    (line,) = said
    assert line.startswith("torch.compile failed, training continues without it:") and line.endswith("no such kernel")


@pytest.mark.parametrize(
    "settings, packed, expected",
    [({"max_steps": 5000}, False, True), ({"epochs": 3}, False, True), ({"max_steps": 500}, False, False),
     ({"max_steps": 5000, "compile": False}, False, False), ({"max_steps": 5000}, True, False),
     ({"max_steps": 5000, "fsdp": True}, False, False), ({"max_steps": 5000, "lora": {"rank": 2}}, False, False),
     ({"max_steps": 5000, "device": "cpu"}, False, False),
     ({"max_steps": 5, "compile": True, "device": "cpu"}, True, True)],
)  # fmt: skip
def test_default_for_compilation(monkeypatch, settings, packed, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    assert compiled.compiles(TrainConfig(**settings), packed) is expected
