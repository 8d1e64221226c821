"""The switches of the objective: what each changes, and what it must not change."""

import pytest
import torch
import torch.nn.functional as F

from nextembed.core.config import validated
from nextembed.core.objective import OBJECTIVES, PretrainingModel
from nextembed.core.randomness import normal
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn import losses
from nextembed.objectives import NextEmbeddingSettings
from nextembed.objectives.next_embedding import DIRECTIONS

SWITCHES = [
    {},
    {"shift": False},
    {"stop_gradient": False},
    {"causal": False},
    {"input_mask_rate": 0.4},
    {"target": "teacher"},
    {"target": "teacher", "target_layer": -1},
    {"target": "hidden", "target_layer": 1},
    {"distance": "mse"},
    {"distance": "smooth_l1"},
    {"distance": "info_nce"},
    {"distance": "sigreg"},
    {"steps_ahead": 2},
    {"steps_ahead": [1, 3]},
    {"steps_ahead": [1, 3], "distance": "sigreg", "every_layer": True},
    {"every_layer": True},
]


def build(layers=2, **switches):
    torch.manual_seed(0)
    backbone = NepaModel(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        layerscale_value=0.5,
    ).build()
    objective = validated(NextEmbeddingSettings, switches).build(backbone)
    return PretrainingModel(backbone, objective)


def batch(objective=None, size=3):
    generator = torch.Generator().manual_seed(1)
    made = {
        "pixel_values": torch.randn(size, 3, 16, 16, generator=generator),
        "latent_mask": torch.ones(size, 17, dtype=torch.bool),
    }
    if objective is not None:
        masks = [torch.ones(17, dtype=torch.bool) for _ in range(size)]
        drawn = [objective.settings.draw({"latent_mask": mask}, generator) for mask in masks]
        made |= {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    return made


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_trains_the_right_parameters(switches):
    model = build(**switches).train()
    made = batch(model.objective)
    out = model(made)
    assert out.loss_sum.isfinite() and out.loss_sum.dtype == torch.float32
    assert out.num_targets == model.objective.count_targets(made)  # known before the forward pass
    assert all(value.isfinite() for value in out.metrics.values())
    (out.loss_sum / out.num_targets).backward()
    for name, p in model.named_parameters():
        if "teacher" in name:
            assert p.grad is None and not p.requires_grad
        else:
            assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("switches", [s for s in SWITCHES if s.get("distance") != "sigreg"], ids=str)
def test_a_batch_loss_is_the_sum_over_its_parts(switches):
    model = build(**switches).eval()
    made = batch(model.objective, size=4)
    whole = model(made)
    halves = [model({k: v[i : i + 2] for k, v in made.items()}) for i in (0, 2)]
    assert sum(h.num_targets for h in halves) == whole.num_targets
    assert sum(h.loss_sum for h in halves).item() == pytest.approx(whole.loss_sum.item(), abs=1e-3)


@pytest.mark.parametrize("every", [False, True])
def test_loss_equals_the_hugging_face_models(every):
    model = build(layers=3, every_layer=every).eval()
    model.backbone.config.use_intermediate_loss = every
    model.backbone.vit_nepa.config.use_intermediate_loss = every
    made = batch()
    out = model(made)
    assert (out.loss_sum / out.num_targets).item() == pytest.approx(
        model.backbone(made["pixel_values"]).loss.item(), abs=1e-6
    )


def test_stop_gradient_switch():
    def gradient_from_targets(stop_gradient):
        model = build(stop_gradient=stop_gradient).eval()
        seen = []
        real = model.objective.loss

        def spy(hidden, target, *rest):
            seen.append(target.requires_grad)
            return real(hidden, target, *rest)

        model.objective.loss = spy
        model(batch())
        return seen

    assert gradient_from_targets(True) == [False]
    assert gradient_from_targets(False) == [True]


def test_causal_switch_changes_what_a_position_sees():
    for causal in (True, False):
        model = build(causal=causal).eval()
        made = batch()
        changed = {**made, "pixel_values": made["pixel_values"].clone()}
        changed["pixel_values"][:, :, -4:, -4:] += 1.0  # the last patch
        seen = []
        real = model.objective.loss
        model.objective.loss = lambda h, *rest, real=real, seen=seen: seen.append(h[:, :16]) or real(h, *rest)
        model(made), model(changed)
        assert torch.allclose(*seen, atol=1e-6) is causal


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_skipping_the_last_latent_has_no_effect(switches):
    results = []
    for skip_last in (True, False):
        model = build(**switches)
        skips = model.objective.skip_last
        assert skips is (switches.get("shift", True) and switches.get("causal", True) and "hidden" not in str(switches))
        model.objective.skip_last = skip_last and skips
        torch.manual_seed(1)
        out = model(batch(model.objective))
        out.loss_sum.backward()
        names = ("cos_next", "cos_current", "copy_win", "latent_rank")
        results.append([out.loss_sum, out.num_targets, *(out.metrics[name] for name in names)])
        results[-1] += [p.grad for p in model.parameters() if p.grad is not None]
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6 * max(10.0, float(two.abs().max())))


def test_input_mask_hides_patches_but_keeps_them_as_targets():
    model = build(input_mask_rate=0.5).eval()
    made = batch(model.objective)
    mask = made["input_mask"]
    assert mask.shape == (3, 17) and mask.any() and not mask[:, 0].any()
    latents = model.backbone.embed(made)
    seen = model.objective.seen(model.backbone, latents, made).z
    shown = mask[:, : seen.shape[1]]
    assert seen[shown].abs().max() == 0
    assert torch.equal(seen[~shown], latents.z[:, : seen.shape[1]][~shown])
    assert model(made).num_targets == 48


def test_masks_depend_only_on_the_generator():
    objective = build(input_mask_rate=0.5).objective
    one, two = batch(objective), batch(objective)
    assert torch.equal(one["input_mask"], two["input_mask"])


def test_several_steps_ahead_have_separate_heads():
    model = build(steps_ahead=[1, 2]).eval()
    made = batch()
    hidden, z = model.backbone(made["pixel_values"]).last_hidden_state, model.backbone.embed(made).z
    head = model.objective.heads["2"]
    expected = losses.negative_cosine(hidden[:, :-1], z[:, 1:]).sum()
    expected += losses.negative_cosine(head(hidden[:, :-2]), z[:, 2:]).sum()
    out = model(made)
    assert out.loss_sum.item() == pytest.approx(expected.item(), abs=1e-3)
    assert out.num_targets == 3 * (16 + 15)


def test_teacher_moves_towards_the_backbone():
    model = build(target="teacher", teacher_decay=0.75)
    teacher, mine = model.objective.teacher.network, model.backbone
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in mine.parameters():
            p.add_(1.0)
    model.objective.after_step(mine, 1, 10)
    for old, new in zip(before, teacher.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25, atol=1e-6)


def test_sigreg_has_no_stop_gradient_and_its_own_projector():
    model = build(distance="sigreg", sigreg_weight=0.0).train()
    out = model(batch())
    out.loss_sum.backward()
    hidden, z = model.backbone.eval()(batch()["pixel_values"]).last_hidden_state, model.backbone.embed(batch()).z
    projector = model.objective.projector
    expected = F.mse_loss(projector(hidden[:, :-1]), projector(z[:, 1:])) * 48
    assert model.eval()(batch()).loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.backbone.vit_nepa.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("switches", [{}, {"every_layer": True}, {"steps_ahead": [1, 3]}], ids=str)
def test_sigreg_is_added_once_with_its_weight(switches):
    """Regardless of the number of layers and steps ahead that the squared error averages over."""
    parts = []
    for weight in (0.0, 1.0):
        model = build(distance="sigreg", sigreg_weight=weight, **switches).eval()
        torch.manual_seed(3)
        out = model(batch())
        parts.append(out.loss_sum / out.num_targets)
    torch.manual_seed(3)
    z = model.objective.projector(model.backbone.embed(batch()).z)
    shape = z.shape[-1], model.objective.settings.sigreg_directions
    directions = normal(len(z), shape[0] * shape[1], DIRECTIONS, z.device).view(-1, *shape)
    expected = losses.sigreg(z, directions).mean()
    assert (parts[1] - parts[0]).item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distance": "cosin"}, "distance"),
        ({"steps_ahead": 0}, "steps_ahead"),
        ({"steps_ahead": [1, 1]}, "steps_ahead"),
        ({"shift": False, "steps_ahead": 2}, "shift=false"),
        ({"target": "hidden"}, "target_layer"),
        ({"input_mask_rate": 1.0}, "input_mask_rate"),
    ],
)
def test_invalid_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        validated(NextEmbeddingSettings, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps_ahead": 17}, "steps_ahead 17: an image has only 17 latents"),
        ({"target": "hidden", "target_layer": 3}, "target_layer 3: the model has layers 0 to 2"),
        ({"target": "teacher", "target_layer": -4}, "target_layer -4: the model has layers 0 to 2"),
        ({"target": "hidden", "target_layer": -3}, "layer 0 is the latents"),
    ],
)
def test_settings_that_do_not_match_the_backbone(values, message):
    with pytest.raises(ConfigError, match=message):
        build(**values)


def test_registered_under_its_kind():
    settings = OBJECTIVES.parse({"kind": "next_embedding", "distance": "mse"})
    assert isinstance(settings, NextEmbeddingSettings) and settings.distance == "mse"
