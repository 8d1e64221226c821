"""V-JEPA: masks that span all frames, loss derived by hand, and masking."""

from typing import Any

import pytest
import torch

from nextembed.core.types import Batch
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.objectives.blocks import BlockSettings
from nextembed.objectives.jepa import IjepaSettings, VjepaSettings, changing, explained
from nextembed.objectives.pixels import AimSettings

FRAMES, SIDE = 4, 4  # frames, and patches per side: two times of 16 patches
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_frames": FRAMES,
    "layerscale_value": 1.0,
    "pos_embed_rescale": None,
}
SETTINGS = VjepaSettings(predictor_width=16, predictor_heads=2, predictor_layers=1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, frames: int = FRAMES, side: int = SIDE) -> dict[str, torch.Tensor]:
    num = 1 + frames // 2 * side * side
    return SETTINGS.draw(
        {"pixel_values": torch.zeros(3 * frames, side, side), "latent_mask": torch.ones(num)}, seeded(seed)
    )


def batch(pixels: torch.Tensor) -> Batch:
    rows = [drawn(seed) for seed in range(len(pixels))]
    parts = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    mask = torch.ones(len(pixels), 33, dtype=torch.bool)
    return {"pixel_values": pixels, "latent_mask": mask, **parts}  # type: ignore[typeddict-item]


def clips(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3 * FRAMES, 16, 16, generator=seeded(0))


@pytest.mark.parametrize(("frames", "side"), [(4, 4), (8, 7)])
def test_masks_span_all_times_and_have_fixed_sizes(frames: int, side: int) -> None:
    times, num = frames // 2, side * side
    shapes, shares = set(), {"short": 0.0, "long": 0.0}
    for seed in range(60):
        found = drawn(seed, frames, side)
        shapes.add(tuple(tuple(found[name].shape) for name in sorted(found)))
        for kind in ("short", "long"):
            context, targets = found[f"context_{kind}"], found[f"targets_{kind}"][0]
            targets = targets[targets > 0]
            assert context[0] == 0 and not set(context.tolist()) & set(targets.tolist())
            for places in (context[1:], targets):  # the same patches in each pair of frames
                by_time = (places - 1).view(times, -1)
                assert (by_time % num == by_time[0]).all()
                assert (by_time // num == torch.arange(times)[:, None]).all()
            shares[kind] += len(targets) / (times * num) / 60
    assert len(shapes) == 1
    assert 0.5 < shares["short"] < shares["long"] < 0.95


def test_the_loss_is_the_mean_distance_over_both_masks() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = SETTINGS.build(backbone).eval()
    given: Any = batch(clips(1))
    with torch.no_grad():
        output = objective(backbone, given)
        hidden = backbone.encode(backbone.embed(given), "full").last[0]
        total, count = 0.0, 0
        for question, kind in enumerate(("short", "long")):
            pred = objective.predicted(backbone, given, question, backbone.embed(given).coordinates)[0, 0]
            for number, place in enumerate(given[f"targets_{kind}"][0, 0].tolist()):
                if place:
                    values = hidden[place]
                    target = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
                    total += float((pred[number] - target).abs().mean())
                    count += 1
    assert output.num_targets == count
    assert float(output.loss_sum) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("question", [0, 1])
def test_predictions_depend_only_on_the_context(question: int) -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = SETTINGS.build(backbone).eval()
    pixels = clips()
    given: Any = batch(pixels)
    kind, coordinates = ("short", "long")[question], backbone.embed(given).coordinates

    def predictions(pixels: torch.Tensor) -> torch.Tensor:
        return objective.predicted(backbone, {**given, "pixel_values": pixels}, question, coordinates)

    before = predictions(pixels)
    seen = torch.zeros(2, 33).scatter(1, given[f"context_{kind}"], 1.0)[:, 1:].view(2, 2, 1, 4, 4)
    seen = seen.repeat_interleave(4, 3).repeat_interleave(4, 4).expand(-1, -1, 6, -1, -1).flatten(1, 2)
    assert torch.allclose(predictions(pixels + 3 * (1 - seen)), before, atol=1e-5)
    assert not torch.allclose(predictions(pixels + 3 * seen), before, atol=1e-3)


def test_the_two_masks_have_separate_mask_vectors() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build()
    objective = SETTINGS.build(backbone)
    assert objective.predictor.unknown.shape == (2, 16)
    objective(backbone, batch(clips())).loss_sum.backward()
    assert (objective.predictor.unknown.grad != 0).any(1).all()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_static_content_explains_no_changes() -> None:
    still, place = torch.randn(40, 1, 8, generator=seeded(0)), torch.randn(1, 4, 8, generator=seeded(1))
    change = torch.randn(40, 4, 8, generator=seeded(2))
    target = (3 * still + place + change).flatten(0, 1)
    clip, index = torch.arange(40).repeat_interleave(4), torch.arange(4).repeat(40)

    def measured(pred: torch.Tensor) -> float:
        pred = pred.expand(40, 4, 8).flatten(0, 1)
        return float(explained(changing(pred, clip), changing(target, clip), index))

    known = 3 * still + place + torch.zeros(40, 4, 8)
    assert explained(known.flatten(0, 1), target, index) > 0.8
    assert measured(known) == pytest.approx(0, abs=0.05) == measured(place.clone())
    assert measured(known + change) == pytest.approx(1)
    assert measured(place + change) == pytest.approx(1)  # only the changing part
    assert measured(known + change / 2) == pytest.approx(0.75, abs=0.05)


def test_the_verdict_depends_on_the_explained_changes() -> None:
    line = {"explained": 0.9, "changes_explained": 0.01, "target_spread": 0.8, "target_rank": 20.0}
    verdict = VjepaSettings().verdict([line])
    assert verdict.word == "undecided" and verdict.sentence.startswith(
        "Little is predicted beyond what stays the same in a clip"
    )
    assert VjepaSettings().verdict([{**line, "changes_explained": 0.4}]).word == "learning"


def test_changes_are_measured_for_both_masks() -> None:
    backbone = NepaModel(**SIZES).build()
    objective = SETTINGS.build(backbone)
    objective.diagnose = True
    metrics = objective(backbone, batch(clips(8))).metrics
    assert set(metrics) == {"explained", "changes_explained", "target_spread", "target_rank", "prediction_spread"}
    assert metrics["changes_explained"] < 0.5  # untrained


def test_mismatched_settings() -> None:
    images, of_clips = NepaModel(**{**SIZES, "num_frames": 1}).build(), NepaModel(**SIZES).build()
    with pytest.raises(ConfigError, match=r"objective vjepa needs clips: .*model\.num_frames"):
        SETTINGS.build(images)
    for settings in (IjepaSettings(), AimSettings()):
        with pytest.raises(ConfigError, match="supports images only; for clips use vjepa, next_embedding or cpc"):
            settings.build(of_clips)
    with pytest.raises(ConfigError, match="16 patches are too few for a block"):
        VjepaSettings(long=BlockSettings(scale=(0.9, 0.9))).build(of_clips)
    for wrong, says in (({"num_frames": 3}, "should be even"), ({"num_channels": 1}, "num_channels=3"),
                        ({"hidden_size": 32}, "multiple of 12")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            NepaModel(**{**SIZES, **wrong})
