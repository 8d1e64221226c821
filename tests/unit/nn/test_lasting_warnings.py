"""Warnings of a run in progress."""

from nextembed.nn.diagnostics import lasting_warnings

COPYING = {"copy_win": 0.9, "cos_current": 0.9, "cos_next": 0.7, "cos_gap": -0.2}


def test_no_copying_warning_during_warm_up():
    lines = [{**COPYING, "learning_rate": rate} for rate in (1e-5, 1e-4, 2e-4)]
    assert lasting_warnings(lines[:1]) == [] and lasting_warnings(lines) == []


def test_copying_warning_after_warm_up():
    lines = [{**COPYING, "learning_rate": rate} for rate in (1e-4, 2e-4, 1.9e-4)]
    assert lasting_warnings(lines)[0].startswith("copying")


def test_collapse_warning_at_once():
    lines = [{"latent_std": 0.01, "latent_rank": 1.5, "learning_rate": rate} for rate in (1e-4, 2e-4)]
    assert lasting_warnings(lines)[0].startswith("collapsed")
