"""LlamaGen and VAR: classification targets, masking, and step-by-step sampling."""

import math
from typing import Any

import pytest
import torch

from nextembed.core.objective import SampleSettings
from nextembed.core.types import Blocks, Latents
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.sampling import ClassTable, draw_tokens, guided, told_labels, with_and_without
from nextembed.objectives.scales import VarSettings
from nextembed.objectives.tokenized import LlamaGenSettings

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
                         "patch_size": 4, "num_channels": 1, "layerscale_value": 1.0}  # fmt: skip
SHAPE: dict[str, Any] = {"image_shape": (8, 8), "patch_shape": (4, 4), "num_channels": 1, "num_codes": 7,
                         "code_width": 3, "width": 8, "num_blocks": 0}  # fmt: skip
KINDS = (LlamaGenSettings, VarSettings)


def built(kind: Any, **changes: Any) -> tuple[Any, Any]:
    """A backbone and an objective whose head is no longer zero."""
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    shape = {**SHAPE, "scales": [1, 2] if kind is VarSettings else []}
    objective = kind(tokenizer_shape=shape, num_classes=3, **changes).build(backbone).eval()
    torch.nn.init.normal_(objective.head.weight)
    return backbone, objective


def batch(pixels: torch.Tensor, **more: torch.Tensor) -> Any:
    return {"pixel_values": pixels, "latent_mask": torch.ones(len(pixels), 5, dtype=torch.bool), **more}


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_head_gives_the_log_of_the_number_of_codes(kind: Any) -> None:
    backbone, objective = built(kind)
    torch.nn.init.zeros_(objective.head.weight)
    images = batch(torch.randn(6, 1, 8, 8), labels=torch.tensor([0, 1, 2, -100, 0, 1]))
    output = objective(backbone, images)
    num = 6 * (4 if kind is LlamaGenSettings else 5)
    assert float(output.loss_sum.detach()) == pytest.approx(num * math.log(7), rel=1e-5)
    assert output.num_targets == objective.count_targets(images) == num


def test_llamagen_predicts_a_code_from_the_class_and_the_codes_before_it() -> None:
    backbone, objective = built(LlamaGenSettings)
    tokens = torch.tensor([[0, 1, 2, 3]])

    def hidden(codes: torch.Tensor, label: int) -> torch.Tensor:
        latents = objective.latents(backbone, codes, torch.tensor([label]))
        assert not latents.coordinates[:, 0].any()  # the class position has no rotation
        return backbone.encode(latents.until(4), "causal").last

    before = hidden(tokens, 0)
    for place in range(4):
        changed = tokens.clone()
        changed[0, place] = 6
        after = hidden(changed, 0)
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])  # the last of them predicts this code
        assert place == 3 or not torch.allclose(after[:, place + 1 :], before[:, place + 1 :])
    assert not torch.allclose(hidden(tokens, 1)[:, 0], before[:, 0])


def test_var_predicts_a_map_from_the_class_and_the_coarser_maps() -> None:
    backbone, objective = built(VarSettings)
    tokens = torch.tensor([[0, 1, 2, 3, 4]])

    def hidden(codes: torch.Tensor) -> torch.Tensor:
        return backbone.encode(objective.latents(backbone, codes, torch.tensor([0])), objective.blocks(1)).last

    before = hidden(tokens)
    for place in range(1, 5):  # codes of the finest map, which are never inputs
        changed = tokens.clone()
        changed[0, place] = 6
        assert torch.equal(hidden(changed), before)
    changed = tokens.clone()
    changed[0, 0] = 6
    after = hidden(changed)
    assert torch.equal(after[:, :1], before[:, :1]) and not torch.allclose(after[:, 1:], before[:, 1:])
    assert objective.blocks(2).ids.tolist() == [[0, 1, 1, 1, 1]] * 2 and isinstance(objective.blocks(1), Blocks)
    assert objective.places(1)[0, 0].tolist() == [0.0, 0.0]


def test_pixels_are_read_only_through_their_codes() -> None:
    for kind in KINDS:
        backbone, objective = built(kind)
        pixels = torch.randn(2, 1, 8, 8)
        tokens = objective.tokenizer.encode(pixels)
        near = pixels + 1e-4
        assert torch.equal(objective.tokenizer.encode(near), tokens)
        assert torch.equal(objective.read(backbone, batch(near)).last, objective.read(backbone, batch(pixels)).last)
        assert objective.read(backbone, {"pixel_values": pixels}, "full").last.shape == (2, 5, 16)


def test_llamagen_samples_the_same_with_and_without_a_cache() -> None:
    backbone, objective = built(LlamaGenSettings)
    labels, scale = torch.tensor([0, 2, -100]), 1.5
    drawn = objective.sample(backbone, {"labels": labels}, SampleSettings(temperature=0, guidance=scale))
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    with torch.no_grad():
        for place in range(4):
            logits = []
            for told in (labels, torch.full_like(labels, -100)):
                hidden = backbone.encode(objective.latents(backbone, tokens, told), "causal").last
                logits.append(objective.head(hidden)[:, place])
            tokens[:, place] = (logits[1] + scale * (logits[0] - logits[1])).argmax(-1)
    assert torch.allclose(drawn, objective.tokenizer.decode(tokens), atol=1e-5)
    assert len({tuple(row) for row in tokens.tolist()}) > 1


def test_var_samples_from_its_cache_with_increasing_guidance() -> None:
    backbone, objective = built(VarSettings)
    labels = torch.tensor([0, 2])
    drawn = objective.sample(backbone, {"labels": labels}, SampleSettings(temperature=0, guidance=3.0))
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with torch.no_grad():
        for part, scale in ((slice(0, 1), 1.0), (slice(1, 5), 3.0)):
            logits = []
            for told in (labels, torch.full_like(labels, -100)):
                hidden = backbone.encode(objective.latents(backbone, tokens, told), objective.blocks(2)).last
                logits.append(objective.head(hidden))
            tokens[:, part] = (logits[1] + scale * (logits[0] - logits[1]))[:, part].argmax(-1)
    assert torch.allclose(drawn, objective.tokenizer.decode(tokens), atol=1e-5)


def test_samples_follow_the_softmax_of_the_head() -> None:
    """With only a bias in the head, codes are sampled independently from its softmax."""
    backbone, objective = built(LlamaGenSettings)
    torch.nn.init.zeros_(objective.head.weight)
    objective.head.bias.data = torch.tensor([0.5, 0.25, 0.25, 1e-9, 1e-9, 1e-9, 1e-9]).log()
    found: list[torch.Tensor] = []
    objective.tokenizer.decode = lambda ids: found.append(ids) or torch.zeros(1)  # type: ignore[func-returns-value]
    objective.sample(backbone, {"labels": torch.zeros(500, dtype=torch.int64)}, None, torch.Generator().manual_seed(0))
    shares = found[0].flatten().bincount(minlength=7) / 2000
    assert torch.allclose(shares, torch.tensor([0.5, 0.25, 0.25, 0, 0, 0, 0]), atol=0.04)


def test_top_k_top_p_and_guidance() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(400, 4)
    generator = torch.Generator().manual_seed(0)

    def drawn(**settings: Any) -> set[int]:
        return set(draw_tokens(logits, SampleSettings(**settings), generator).tolist())

    assert drawn() == {0, 1, 2, 3} and drawn(top_k=2) == {0, 1} and drawn(temperature=0) == {0}
    assert drawn(top_p=0.5) == {0} and drawn(top_p=0.81) == {0, 1, 2} and drawn(temperature=0.05) == {0}
    labels = torch.tensor([2, 0])
    assert with_and_without(labels).tolist() == [2, 0, -100, -100]
    pairs = torch.tensor([[1.0], [2.0], [0.0], [4.0]])
    assert guided(pairs, 2.0).flatten().tolist() == [2.0, 0.0] and guided(pairs, 0.0).flatten().tolist() == [0.0, 4.0]


def test_classes_are_dropped_and_must_be_known() -> None:
    labels = torch.tensor([0, 1, 2])
    told = told_labels({"labels": labels, "class_dropped": torch.tensor([True, False, False])}, 3, labels.device)
    assert told.tolist() == [-100, 1, 2]
    settings = LlamaGenSettings(class_drop_rate=0.3)
    drops = [settings.draw({}, torch.Generator().manual_seed(seed))["class_dropped"] for seed in range(400)]
    assert 0.2 < float(torch.stack(drops).float().mean()) < 0.4
    table = ClassTable(2, 4)
    assert torch.equal(table(torch.tensor([-100]))[0], table.table.weight[2])
    assert torch.equal(ClassTable(0, 4)(labels).std(0), torch.zeros(4))  # without classes, labels are ignored
    with pytest.raises(ConfigError, match=r"objective.num_classes 2: the data has a class 2"):
        table(labels)


def test_mismatched_tokenizers() -> None:
    backbone = NepaModel(**SIZES).build()
    for kind, shape, words in (
        (LlamaGenSettings, {**SHAPE, "scales": [1, 2]}, "needs a tokenizer with a single map.* has maps of side 1, 2"),
        (VarSettings, SHAPE, "needs a tokenizer with several maps"),
        (VarSettings, {**SHAPE, "num_channels": 3}, "was trained on 3 channels, the model has 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            kind(tokenizer_shape=shape).build(backbone)
    with pytest.raises(ConfigError, match=r"objective.tokenizer: name a finished run"):
        VarSettings().build(backbone)
    with pytest.raises(ConfigError, match=r"no such run or folder: runs/none"):
        LlamaGenSettings(tokenizer="runs/none").build(backbone)


def test_an_untrained_tokenizer_is_reported() -> None:
    assert LlamaGenSettings(tokenizer_shape=SHAPE).warnings([])[0].startswith("tokenizer: it is untrained")
    assert not LlamaGenSettings(tokenizer="runs/vq").warnings([])
    assert LlamaGenSettings().verdict([{"token_top1": 0.4, "token_chance": 0.2}]).word == "learning"
    assert VarSettings().verdict([{"token_top1": 0.2, "token_chance": 0.2}]).word == "undecided"


def test_encoding_continues_from_the_cache() -> None:
    backbone, _ = built(LlamaGenSettings)
    latents = backbone.embed({"pixel_values": torch.randn(2, 1, 8, 8)})
    whole, cache = backbone.encode(latents, "causal").last, backbone.new_cache()
    parts = [backbone.encode_next(Latents(latents.z[:, a:b], latents.coordinates[:, a:b]), "causal", cache).last
             for a, b in ((0, 1), (1, 2), (2, 5))]  # fmt: skip
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_weights_by_hand_and_in_sampling(kind: Any) -> None:
    """After step 1 the average decays by min(0.9, 2 / 11); sampling uses it and then restores the trained weights."""
    backbone, objective = built(kind, ema_decay=0.9)
    plain = built(kind)[1]
    assert objective.averages and not plain.averages and plain.averaged is None
    before = objective.averaged.network["head"].weight.clone()
    objective.after_step(backbone, 1, 10)
    average = objective.averaged.network["head"].weight
    assert torch.allclose(average, 2 / 11 * before + 9 / 11 * objective.head.weight, atol=1e-6)
    assert [p.shape for p in objective.averaged.parameters()] == [p.shape for p in objective.own()]
    assert not any("tokenizer" in name for name, _ in objective.averaged.named_parameters())
    torch.nn.init.normal_(objective.averaged.network["head"].weight)
    told = {"labels": torch.tensor([0, 1, 2])}
    trained = objective.head.weight.detach().clone()
    draw = lambda one: one.sample(backbone, told, None, torch.Generator().manual_seed(0))  # noqa: E731
    averaged = draw(objective)
    assert torch.equal(objective.head.weight, trained)
    objective.draws_averaged = False
    raw = draw(objective)
    assert not torch.equal(averaged, raw)
    objective.load_state_dict({**objective.state_dict(), "head.weight": objective.averaged.network["head"].weight})
    assert torch.equal(draw(objective), averaged)
    assert torch.equal(draw(plain), raw)
