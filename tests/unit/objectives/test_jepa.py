"""I-JEPA: blocks, loss derived by hand, and masking."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nextembed import fit, recipes
from nextembed.core.types import Batch
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.models.nepa.settings import NepaClassifier
from nextembed.nn.ema import decay_at
from nextembed.objectives.blocks import BlockSettings, places
from nextembed.objectives.jepa import IjepaSettings, explained
from nextembed.objectives.saved import objective_of, other_features

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 1,
    "layerscale_value": 1.0,
    "pos_embed_rescale": None,
}
PREDICTOR: dict[str, Any] = {"predictor_width": 16, "predictor_heads": 2, "predictor_layers": 1}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(settings: Any, side: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    sample = {"pixel_values": torch.zeros(1, side, side), "latent_mask": torch.ones(side * side + 1)}
    found: dict[str, torch.Tensor] = settings.draw(sample, seeded(seed))
    return found


def batch(settings: Any, pixels: torch.Tensor) -> Batch:
    rows = [drawn(settings, seed=seed) for seed in range(len(pixels))]
    parts = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    mask = torch.ones(len(pixels), 17, dtype=torch.bool)
    return {"pixel_values": pixels, "latent_mask": mask, **parts}  # type: ignore[typeddict-item]


def images(num: int = 3) -> torch.Tensor:
    return torch.randn(num, 1, 16, 16, generator=seeded(0))


def test_places_are_indices_of_latents_padded_with_0() -> None:
    mask = torch.tensor([[False, True, False, True], [False, False, False, False]])
    assert places(mask, 3).tolist() == [[2, 4, 0], [0, 0, 0]]


@pytest.mark.parametrize("side", [3, 4, 7, 14])
def test_blocks_and_context_are_disjoint_and_have_the_requested_sizes(side: int) -> None:
    settings, num = IjepaSettings(), side * side
    lengths, rates, ratios = set(), [], []
    reached, held = torch.zeros(num + 1), torch.zeros(num + 1)
    for seed in range(150):
        found = drawn(settings, side, seed)
        context, targets = found["context_block"], found["targets_block"]
        assert context[0] == 0 and (context.diff() > 0).all()
        lengths.add((len(context), *targets.shape))
        assert not set(context[1:].tolist()) & set(targets[targets > 0].tolist())
        reached[targets.flatten()] = held[context] = 1
        for one in targets:
            cells = one[one > 0] - 1
            rows, columns = (cells // side), (cells % side)
            high, wide = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
            assert high * wide == len(cells)  # a full rectangle
            rates.append(len(cells) / num)
            ratios.append(high / wide)
    assert len(lengths) == 1  # all samples have the same shapes
    assert reached[1:].all() and held[1:].all()  # including the last row and column
    if side == 14:
        assert 0.12 < min(rates) < 0.155 and 0.195 < max(rates) < 0.24
        assert min(ratios) < 0.8 and max(ratios) > 1.4
        assert abs(torch.corrcoef(torch.tensor([rates, ratios]))[0, 1]) < 0.2  # scale and aspect are independent


def test_blocks_without_enough_room_coincide() -> None:
    settings = BlockSettings(num_blocks=20, scale=(0.25, 0.25), aspect=(1.0, 1.0), context_rate=0.7)
    context, blocks = settings.draw(4, 4, seeded(0))
    assert context.sum() == 11 and (blocks == blocks[0]).all() and not (context & blocks[0]).any()


def test_the_loss_follows_the_formula() -> None:
    """Smooth L1 (half the square below 1, distance minus a half above) on targets with mean 0 and variance 1."""
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = IjepaSettings(**PREDICTOR).build(backbone).eval()
    given = batch(objective.settings, images(1))
    with torch.no_grad():
        output = objective(backbone, given)
        pred = objective.predicted(backbone, given, 0, backbone.embed(given).coordinates)[0]
    hidden = backbone.encode(backbone.embed(given), "full").last[0].detach()
    total, count = 0.0, 0
    for which, one in enumerate(given["targets_block"][0].tolist()):  # type: ignore[typeddict-item]
        for number, place in enumerate(one):
            if place == 0:
                continue
            values = hidden[place]
            target = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            error = (pred[which, number] - target).abs()
            total += float(torch.where(error < 1, error.square() / 2, error - 0.5).mean())
            count += 1
    assert output.num_targets == count
    assert float(output.loss_sum) == pytest.approx(total, rel=1e-4)


def test_predictions_depend_only_on_the_context() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = IjepaSettings(**PREDICTOR).build(backbone).eval()
    pixels = images()
    given = batch(objective.settings, pixels)
    coordinates = backbone.embed(given).coordinates

    def predictions(pixels: torch.Tensor, **other: torch.Tensor) -> torch.Tensor:
        changed: Any = {**given, "pixel_values": pixels, **other}
        return objective.predicted(backbone, changed, 0, coordinates)

    before, context = predictions(pixels), given["context_block"]  # type: ignore[typeddict-item]
    seen = torch.zeros(3, 17).scatter(1, context, 1.0)[:, 1:].view(3, 1, 4, 4)
    seen = F.interpolate(seen, scale_factor=4, mode="nearest")
    assert torch.allclose(predictions(pixels + 3 * (1 - seen)), before, atol=1e-5)
    assert not torch.allclose(predictions(pixels + 3 * seen), before, atol=1e-3)
    targets = given["targets_block"].clone()  # type: ignore[typeddict-item]
    targets[:, 1:] = 0
    alone = predictions(pixels, targets_block=targets)
    valid = targets[:, 0] > 0
    assert torch.allclose(alone[:, 0][valid], before[:, 0][valid], atol=1e-5)


def test_targets_get_no_gradient_and_the_teacher_follows_its_schedule() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build()
    objective = IjepaSettings(**PREDICTOR).build(backbone)
    objective(backbone, batch(objective.settings, images())).loss_sum.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is not None for p in [*backbone.parameters(), *objective.predictor.parameters()])
    name, before = next(iter(objective.teacher.network.named_parameters()))
    before, student = before.clone(), dict(backbone.named_parameters())[name]
    with torch.no_grad():
        student += 1
    objective.after_step(backbone, 9000, 10_000)  # 0.996 + 0.004 * 0.9, below (1 + 9000) / (10 + 9000) = 0.99900
    decay = min(0.9996, 9001 / 9010)
    after = dict(objective.teacher.network.named_parameters())[name]
    assert torch.allclose(after, decay * before + (1 - decay) * student, atol=1e-7)
    objective.after_step(backbone, 10, 1000)
    assert decay_at(0.99604, 10) == 11 / 20  # in a short run the teacher forgets its initialisation


def test_features_are_those_of_the_teacher() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = IjepaSettings(**PREDICTOR).build(backbone).eval()
    given = batch(objective.settings, images())
    before = objective.read(backbone, given).last
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    assert torch.equal(objective.read(backbone, given).last, before)
    assert objective.reads_itself


def test_a_model_that_knows_only_positions_explains_nothing() -> None:
    generator = seeded(0)
    index = torch.randint(0, 9, (4000,), generator=generator)
    offsets = 3 * torch.randn(9, 8, generator=generator)
    target = offsets[index] + torch.randn(4000, 8, generator=generator)
    assert abs(float(explained(offsets[index], target, index))) < 0.01
    assert float(explained(target, target, index)) == 1.0
    half = offsets[index] + (target - offsets[index]) / 2
    assert float(explained(half, target, index)) == pytest.approx(0.75, abs=0.01)
    # by hand: targets 0 and 2 at one position, both predicted as 1: error 1 + 1, unbiased variance 2 * (1 + 1)
    few = explained(torch.tensor([[1.0], [1.0], [9.0]]), torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([3, 3, 1]))
    assert float(few) == pytest.approx(1 - 2 / 4)


def test_predictions_on_noise_explain_nothing() -> None:
    """With noise images and a teacher without mixing between patches, nothing is explained on new images."""
    torch.manual_seed(0)
    backbone = NepaModel(**{**SIZES, "layerscale_value": 0.0}).build()  # its layers initially add nothing
    objective = IjepaSettings(**PREDICTOR).build(backbone)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.predictor.parameters()], 3e-3)
    for step in range(12):
        output = objective(backbone, batch(objective.settings, torch.randn(32, 1, 16, 16, generator=seeded(step))))
        optimizer.zero_grad()
        (output.loss_sum / output.num_targets).backward()
        optimizer.step()
    output = objective(backbone, batch(objective.settings, torch.randn(128, 1, 16, 16, generator=seeded(99))))
    assert output.metrics["explained"] < 0.02


def test_the_verdict_detects_collapse_of_the_targets() -> None:
    settings = IjepaSettings()
    fine = {"explained": 0.4, "target_spread": 0.9, "target_rank": 9.0}
    assert settings.verdict([fine]).word == "learning"
    assert settings.verdict([{**fine, "explained": 0.01}]).word == "undecided"
    assert settings.verdict([{**fine, "target_spread": 0.1}]).word == "collapsed"
    assert settings.verdict([{**fine, "target_rank": 1.5}]).word == "collapsed"
    assert settings.verdict([{"loss": 1.0}]).word == "undecided"
    collapsed = {**fine, "target_spread": 0.1}
    assert settings.warnings([fine, collapsed]) == []  # not lasting
    assert len(settings.warnings([collapsed] * 5)) == 1


def test_mismatched_settings() -> None:
    small = NepaModel(**{**SIZES, "image_size": 8}).build()
    with pytest.raises(ConfigError, match="4 patches are too few for a block of up to 1 and a context of 4"):
        IjepaSettings().build(small)
    with pytest.raises(ConfigError, match="predictor_heads 5 does not divide"):
        IjepaSettings(predictor_heads=5).build(NepaModel(**SIZES).build())
    for wrong in ({"scale": (0.3, 0.2)}, {"aspect": (0.0, 1.0)}):
        with pytest.raises(ConfigError, match="should be"):
            BlockSettings(**wrong)
    with pytest.raises(ConfigError, match="context_scale"):
        IjepaSettings(context_scale=(0.9, 1.2))


def test_fine_tuning_starts_from_the_teacher_or_notes_the_difference(tmp_path: Path) -> None:
    config = recipes.load("ijepa_demo_tiny").model_copy(update={"output_dir": str(tmp_path)})
    config.probe.enabled = False
    config.optim.learning_rate = 0.01
    run = fit(config)
    teacher = run.saved().folder("teacher")
    model, follows = run.model("teacher"), run.model()
    objective = objective_of(run.dir / "model", follows)
    assert objective is not None and objective_of(teacher, model) is None and not other_features(str(teacher))
    given: Any = {"pixel_values": torch.randn(2, 3, *follows.config.image_shape, generator=seeded(0))}
    with torch.no_grad():
        seen, own = objective.read(follows, given).last, follows.encode(follows.embed(given), "full").last
        assert torch.equal(model.encode(model.embed(given), "full").last, seen) and not torch.allclose(own, seen)
    for start in (run.dir, run.dir / "model"):
        said = other_features(str(start))
        assert said.startswith(
            f"features of {start} are read by its objective ijepa, but training starts from the model"
        )
        assert said.endswith(f"model.pretrained={teacher} starts from the weights that features are read from")
    classifier = NepaClassifier(pretrained=str(teacher)).build(["a", "b"])
    weights = model.state_dict()
    kept = {name: value for name, value in classifier.state_dict().items() if name in weights}
    assert kept and all(torch.equal(value, weights[name]) for name, value in kept.items())
