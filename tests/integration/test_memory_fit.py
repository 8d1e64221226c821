"""A run that does not fit into memory chooses smaller micro-batches itself and gets the same weights."""

from test_distributed import config

from nextembed.core.config import apply_overrides
from nextembed.planning import fitting
from nextembed.planning.step import trace_step
from nextembed.run import fit, read_run_config


def test_a_run_in_micro_batches_that_fit_has_the_same_weights(tmp_path, monkeypatch, capsys):
    given = config(tmp_path, max_steps=2)
    assert given.train.micro_batch_size is None
    whole = fit(apply_overrides(given, ["name=whole"]))
    assert "Memory:" not in capsys.readouterr().out
    one = trace_step(apply_overrides(given, ["train.micro_batch_size=1"]), 1, 0).peak
    step = trace_step(given, 1, 0).peak
    monkeypatch.setattr(fitting, "memory", lambda device: int((one + 0.6 * (step - one)) / 0.8))
    parts = fit(apply_overrides(given, ["name=parts"]))
    said = capsys.readouterr().out
    assert "Memory:  a whole step would need about" in said and "2 micro batches of 8 (same result)" in said
    assert read_run_config(parts.dir).train.micro_batch_size is None  # the choice is not saved
    found = dict(parts.model().named_parameters())
    for name, weight in whole.model().named_parameters():
        assert (found[name] - weight).abs().max() <= 1e-5 * weight.abs().max().clamp(min=1e-3), name
