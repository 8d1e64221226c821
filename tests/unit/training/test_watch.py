import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from nextembed.core import distributed
from nextembed.training.watch import Averages, EmaWeights, OnlineProbe, ProgressBar, Records, duration, summary


def at(step, max_steps=100, **more):
    return SimpleNamespace(step=step, max_steps=max_steps, **more)


def small():
    torch.manual_seed(0)
    return SimpleNamespace(backbone=nn.Linear(3, 2))


def averaged(model, decay=0.5, **weights):
    ema = EmaWeights(decay, model.backbone)
    for name, value in weights.items():
        ema.weights[name].copy_(value)
    return ema


def test_ema_follows_the_formula_and_warms_up():
    model = small()
    ema = averaged(model)
    expected = model.backbone.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            model.backbone.weight += 1
        ema.update(model.backbone, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.backbone.weight.detach()
    torch.testing.assert_close(ema.weights["weight"], expected)
    ema.start(model.backbone)
    assert torch.equal(ema.weights["weight"], model.backbone.weight)


def test_a_frozen_network_has_no_average():
    model = small()
    model.backbone.requires_grad_(False)
    ema = averaged(model)
    ema.update(model.backbone, 1)
    ema.start(model.backbone)
    with ema.applied(model.backbone):
        pass
    assert ema.weights == {}


def test_ema_is_applied_only_inside_the_block():
    model = small()
    own, ema = model.backbone.weight.detach().clone(), averaged(model, weight=torch.ones(2, 3))
    with pytest.raises(RuntimeError), ema.applied(model.backbone):
        assert torch.equal(model.backbone.weight, torch.ones(2, 3))
        raise RuntimeError
    assert torch.equal(model.backbone.weight, own)
    assert torch.equal(ema.weights["weight"], torch.ones(2, 3))


def test_means_include_metrics_of_only_some_ranks(monkeypatch):
    found = Averages()
    found.add("loss.0", torch.tensor(6.0), 3)
    found.add("loss.0", torch.tensor(2.0), 1)
    found.add("psnr", torch.tensor(30.0))
    other = {"loss.0": [4.0, 4.0], "text_loss": [1.0, 2.0]}
    monkeypatch.setattr(distributed, "gather_objects", lambda state: [state, other])
    assert found.drain() == {"loss.0": 1.5, "psnr": 30.0, "text_loss": 0.5}
    assert found.state() == {}


def test_records_drop_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 5}\n{"step": 9}\n{"step": 1')
    records = Records(path, lambda lines: [], lambda text: None, resume_step=5)
    records.logged(at(7), {"step": 7, "loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 5},
        {"step": 7, "loss": 0.5},
    ]


def test_warnings_are_always_recorded_and_printed_once_if_lasting(tmp_path):
    said = []
    records = Records(tmp_path / "m.jsonl", lambda lines: [f"copying: {lines[-1]['x']}"], said.append)
    for step in (1, 2, 3):
        records.logged(at(step), {"step": step, "x": step})
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["warnings"] for line in lines] == [["copying: 1"], ["copying: 2"], ["copying: 3"]]
    assert len(said) == 1
    assert "step 2: copying: 2" in said[0]


def test_plain_progress_is_one_line_per_log():
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=200, highlight=False))
    bar.started(at(0))
    for step in (1, 2, 3):
        bar.stepped(at(step))
    bar.logged(at(3), {"step": 3, "loss": -0.25, "cos_gap": 0.1, "images_per_second": 120.4})
    bar.close()
    assert out.getvalue().startswith("step 3/100  loss -0.2500  gap +0.100  120 images/s  ETA 0:00:")
    assert out.getvalue().count("\n") == 1


def test_live_bar_shows_the_same():
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=150, force_terminal=True, highlight=False))
    bar.started(at(0))
    bar.logged(at(3), {"step": 3, "loss": -0.25, "cos_gap": 0.1, "images_per_second": 120.4})
    bar.stepped(at(3))
    bar.say("a note")
    bar.close()
    for text in ("3/100", "loss -0.2500", "gap +0.100", "120 images/s", "a note", "ETA"):
        assert text in out.getvalue(), text


def test_summary_and_duration():
    assert summary({"loss": -0.5, "probe/knn": 0.421, "other": 1.0}) == "loss -0.5000  kNN 42.1%"
    assert duration(3725.4) == "1:02:05"


def test_online_probe_measures_both_weights_in_eval_mode():
    model = small()
    model.backbone.train()
    ema = averaged(model, weight=torch.zeros(2, 3))

    def probe(backbone):
        assert not backbone.training
        return {"probe/knn": float(backbone.weight.detach().abs().sum())}

    online = OnlineProbe(probe, 5, ema)
    assert [online.due(step, 12) for step in (4, 5, 11, 12)] == [False, True, False, True]
    own = float(model.backbone.weight.detach().abs().sum())
    assert online(at(5, bare=model)) == {"probe/knn": own, "probe/ema_knn": 0.0}
    assert model.backbone.training
