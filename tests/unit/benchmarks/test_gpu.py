"""The GPU benchmark on a CPU: rows that need no accelerator have numbers; the others give the reason for skipping."""

import pytest
import torch

import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the table of a machine without an accelerator")
def test_the_table_of_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    slow = ("compile", "FSDP2")  # takes seconds to compile; needs its own process group
    monkeypatch.setattr(gpu, "ROWS", {k: v for k, v in gpu.ROWS.items() if not any(word in k for word in slow)})
    found = gpu.measure(tiny=True, steps=2)
    for name in ("eager attention, fp32", "sdpa, fp32", "sdpa, bf16", "sdpa, bf16, recomputed activations"):
        assert found[name]["ms"] > 0 and found[name]["images_per_second"] > 0, name
    assert all(found[f"AdamW step, {name}"]["ms"] > 0 for name in ("fused", "foreach", "one by one"))
    assert "skipped" in found["copy of a batch, pageable"] and "skipped" in found["flash attention 2, bf16"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found)


def test_no_row_begins_after_the_limit() -> None:
    assert {one["skipped"] for one in gpu.measure(tiny=True, steps=1, limit=-1).values()} == {"-1 s are over"}
