"""Reports of generative models: tokenizer reconstructions, and samples drawn during and after training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nextembed import recipes
from nextembed.errors import DataError
from nextembed.nn.tokenizer import ImageTokenizer, TokenizerShape
from nextembed.report.generated import (
    draw_rows,
    from_training,
    give_back,
    histogram,
    perplexity,
    reconstructions,
    samples,
)
from nextembed.training.drawing import Drawings, draw

SHAPE = TokenizerShape(image_shape=(8, 8), patch_shape=(4, 4), num_channels=1, num_codes=5, code_width=2, width=8,
                       num_blocks=0, scales=[1, 2])  # fmt: skip


def test_perplexity_by_hand() -> None:
    assert perplexity(torch.tensor([3, 3, 0, 3])) == pytest.approx(3)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([3, 1])) == pytest.approx(4 / 27**0.25)


def test_reconstructions_scale_by_scale() -> None:
    torch.manual_seed(0)
    tokenizer, pixels = ImageTokenizer(SHAPE).eval(), torch.rand(20, 1, 8, 8) * 2 - 1
    found = give_back(tokenizer, pixels, 0.5, 0.5)
    ids = tokenizer.encode(pixels)
    chosen = [0, 2, 5, 7, 10, 12, 15, 17]  # evenly spaced, in the order of the data
    assert torch.allclose(found.images, (pixels[chosen] + 1) / 2)
    assert torch.allclose(found.back[-1], ((tokenizer.decode(ids[chosen]) + 1) / 2).clamp(0, 1))
    assert torch.allclose(found.back[0], ((tokenizer.decode(ids[chosen, :1]) + 1) / 2).clamp(0, 1))
    assert found.psnr == pytest.approx(float(10 * torch.log10(4 / (tokenizer.decode(ids) - pixels).square().mean())))
    assert torch.equal(found.shares, ids.flatten().bincount(minlength=5) / 100)
    assert [(code.side, code.used) for code in found.codes] == [
        ("1 x 1", len(ids[:, 0].unique())), ("2 x 2", len(ids[:, 1:].unique()))]  # fmt: skip
    page = reconstructions(found, "test")
    assert page.count("<img") == 3 * 8 and "up to 1 x 1" in page and "<td>2 x 2</td>" in page
    assert histogram(torch.tensor([0.25, 0.0, 0.75])).count("<rect") == 2 and "75.0 %" in histogram(
        torch.tensor([0.25, 0.75])
    )


@pytest.fixture(scope="module")
def var() -> tuple[Any, Any]:
    config = recipes.load("var_demo_tiny")
    torch.manual_seed(0)
    backbone = config.model.build([])  # type: ignore[attr-defined]
    return backbone, config.objective.build(backbone)


def test_sampling_does_not_change_training(var: tuple[Any, Any], tmp_path: Path) -> None:
    backbone, objective = var
    backbone.train(), objective.train()
    state = torch.get_rng_state()
    images = draw(objective, backbone)
    assert images.shape == (9, 3, 12, 12) and torch.equal(images, draw(objective, backbone))
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training and objective.training and not objective.tokenizer.training and objective.draws_averaged

    class Loop:
        step, max_steps, bare = 0, 5, type("Bare", (), {"backbone": backbone, "objective": objective})

    watcher, loop = Drawings(tmp_path, 2, 0.5, 0.5), Loop()
    for loop.step in range(1, 6):
        watcher.stepped(loop)  # type: ignore[arg-type]
    assert [file.name for file in sorted((tmp_path / "samples").iterdir())] == [f"step-00000{i}.png" for i in (2, 4, 5)]
    rows = from_training(tmp_path / "samples", (12, 12))
    assert [name for name, _ in rows] == ["step 2", "step 4", "step 5"] and rows[0][1].shape == (9, 3, 12, 12)
    assert torch.allclose(rows[0][1], ((images + 1) / 2).clamp(0, 1), atol=0.5 / 255 + 1e-6)
    Image.new("RGB", (7, 12)).save(tmp_path / "samples" / "step-000006.png")
    with pytest.raises(DataError, match="does not contain images of 12 x 12 pixels"):
        from_training(tmp_path / "samples", (12, 12))
    assert from_training(tmp_path / "nothing", (12, 12)) == []


def test_a_row_for_each_class(var: tuple[Any, Any]) -> None:
    backbone, objective = var
    backbone.eval(), objective.eval()
    rows = draw_rows(objective, backbone, ["<b>", "two"], 0.5, 0.5)
    assert [name for name, _ in rows] == ["<b>", "two", *map(str, range(2, 9))]
    assert all(images.shape == (8, 3, 12, 12) and 0 <= images.min() <= images.max() <= 1 for _, images in rows)
    page = samples(rows, [])
    assert page.count("<img") == 72 and "&lt;b&gt;" in page and "Samples in training" not in page
    assert "Samples in training" in samples(rows, [("step 1", rows[0][1]), ("step 2", rows[1][1])])
