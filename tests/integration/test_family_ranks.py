"""Batch norm, SIGReg, codebooks and I-JEPA blocks on two ranks equal those of the whole batch on one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_runner import gradients

RUNNER = Path(__file__).parent / "family_runner.py"


@pytest.mark.slow
def test_two_ranks_give_the_same_gradients_as_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(RUNNER), str(tmp_path / "two.pt")], capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = gradients(0, 1), torch.load(tmp_path / "two.pt", weights_only=True)
    assert one.keys() == two.keys() and len(one) > 20
    for name, value in one.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert (two[name] - value).abs().max() <= 2e-4 * scale, name
