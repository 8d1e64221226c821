import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from nextembed.training.callbacks import EmaWeights, OnlineProbe, ProgressBar, Records, duration, summary


def state(step, max_steps=100):
    return SimpleNamespace(global_step=step, max_steps=max_steps, is_world_process_zero=True)


def small():
    torch.manual_seed(0)
    return SimpleNamespace(backbone=nn.Linear(3, 2))


def test_ema_follows_the_formula_and_warms_up():
    model, ema = small(), EmaWeights(0.5)
    ema.start(model.backbone)
    expected = model.backbone.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            model.backbone.weight += 1
        ema.on_optimizer_step(None, state(step), None, model=model)
        decay = min(0.5, (2 + step) / (11 + step))
        expected = decay * expected + (1 - decay) * model.backbone.weight.detach()
    torch.testing.assert_close(ema.weights["weight"], expected)


def test_ema_goes_on_from_stored_weights():
    model, ema = small(), EmaWeights(0.5)
    stored = {"weight": torch.ones(2, 3), "unknown": torch.ones(1)}
    ema.start(model.backbone, stored)
    assert torch.equal(ema.full()["weight"], torch.ones(2, 3))
    assert torch.equal(ema.full()["bias"], model.backbone.bias.detach())
    assert ema.full().keys() == {"weight", "bias"}


def test_ema_is_applied_only_inside_the_block():
    model, ema = small(), EmaWeights(0.5)
    own = model.backbone.weight.detach().clone()
    ema.start(model.backbone, {"weight": torch.ones(2, 3)})
    with pytest.raises(RuntimeError), ema.applied(model.backbone):
        assert torch.equal(model.backbone.weight, torch.ones(2, 3))
        raise RuntimeError
    assert torch.equal(model.backbone.weight, own)
    assert torch.equal(ema.weights["weight"], torch.ones(2, 3))


def test_records_drop_what_follows_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 5}\n{"step": 9}\n{"step": 1')
    records = Records(path, lambda lines: [], lambda text: None, resume_step=5)
    records.on_log(None, state(7), None, logs={"loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 5},
        {"step": 7, "loss": 0.5},
    ]


def test_a_warning_is_recorded_always_and_said_once_when_it_lasts(tmp_path):
    said = []
    records = Records(tmp_path / "m.jsonl", lambda lines: [f"copying: {lines[-1]['x']}"], said.append)
    for step in (1, 2, 3):
        records.on_log(None, state(step), None, logs={"x": step})
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["warnings"] for line in lines] == [["copying: 1"], ["copying: 2"], ["copying: 3"]]
    assert len(said) == 1
    assert "step 2: copying: 2" in said[0]


def test_plain_progress_is_one_line_a_log():
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=200, highlight=False))
    bar.on_train_begin(None, state(0), None)
    for step in (1, 2, 3):
        bar.on_step_end(None, state(step), None)
    bar.on_log(None, state(3), None, logs={"loss": -0.25, "cos_gap": 0.1, "images_per_second": 120.4})
    bar.close()
    assert out.getvalue().startswith("step 3/100  loss -0.2500  gap +0.100  120 images/s  ETA 0:00:")
    assert out.getvalue().count("\n") == 1


def test_live_bar_shows_the_same():
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=150, force_terminal=True, highlight=False))
    bar.on_train_begin(None, state(0), None)
    bar.on_log(None, state(3), None, logs={"loss": -0.25, "cos_gap": 0.1, "images_per_second": 120.4})
    bar.on_step_end(None, state(3), None)
    bar.say("a note")
    bar.close()
    for text in ("3/100", "loss -0.2500", "gap +0.100", "120 images/s", "a note", "ETA"):
        assert text in out.getvalue(), text


def test_summary_and_duration():
    assert summary({"loss": -0.5, "probe/knn": 0.421, "other": 1.0}) == "loss -0.5000  kNN 42.1%"
    assert duration(3725.4) == "1:02:05"


def test_online_probe_measures_both_weights_in_eval_mode():
    model, ema = small(), EmaWeights(0.5)
    model.backbone.train()
    ema.start(model.backbone, {"weight": torch.zeros(2, 3)})
    control = SimpleNamespace(should_log=False)

    def probe(backbone):
        assert not backbone.training
        return {"probe/knn": float(backbone.weight.detach().abs().sum())}

    online = OnlineProbe(probe, 5, ema)
    online.on_step_end(None, state(4), control, model=model)
    assert not control.should_log
    online.on_step_end(None, state(5), control, model=model)
    assert control.should_log
    assert online.results == {"probe/knn": float(model.backbone.weight.detach().abs().sum()), "probe/ema_knn": 0.0}
    assert model.backbone.training
