"""Probes on two ranks give the same table as on one, and no rank hangs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import config

from nextembed.run import fit
from nextembed.tasks.pretraining import probe

RUNNER = Path(__file__).parent / "probe_runner.py"


def two_ranks(*words: object) -> None:
    command = [sys.executable, str(RUNNER), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_two_ranks_give_the_same_table_as_one(tmp_path: Path, seeds: int) -> None:
    settings = config(tmp_path, max_steps=1)
    settings.probe.num_train, settings.probe.num_validation, settings.probe.num_test = 200, 60, 60
    settings.probe.seeds = seeds
    run = fit(settings)
    probe(run).save(tmp_path / "one.json")
    two_ranks("probe", run.dir, tmp_path / "two.json")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert {row["weights"] for row in two["rows"]} == {"raw", "ema", "untrained"}
    assert any(row["accuracy"] is not None for row in two["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["wait", "fail"])
def test_ranks_wait_without_timeout_and_fail_together(what: str) -> None:
    two_ranks(what)
