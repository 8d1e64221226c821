"""Tokenizers: quantisation derived by hand, dead codes, loading errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.tokenizer import ImageTokenizer, MapQuantizer, TokenizerShape, strides
from nextembed.objectives.tokenizer import FOLDER, TokenizerSettings, check_tokenizer, load_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
                         "patch_size": 4, "num_channels": 1}  # fmt: skip
SHAPE: dict[str, Any] = {"image_shape": (8, 8), "patch_shape": (4, 4), "num_channels": 1, "num_codes": 3,
                         "code_width": 2, "width": 8, "num_blocks": 1}  # fmt: skip


def batch(pixels: torch.Tensor) -> Any:
    return {"pixel_values": pixels}


def test_one_map_by_hand() -> None:
    """Three cells, three codes: the code with the nearest direction, and 1.25 times the squared distance."""
    quantizer = MapQuantizer(TokenizerShape(**{**SHAPE, "image_shape": (4, 12)}))
    quantizer.codes.data = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    f = torch.tensor([[3.0, 4.0], [-2.0, 0.0], [1.0, 0.0]]).T[None, :, None].requires_grad_()  # [1, 2, 1, 3]
    found = quantizer(f)
    assert found.ids.tolist() == [[1, 2, 0]]
    expected = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])  # unit length
    assert torch.allclose(found.features[0, :, 0].T, expected, atol=1e-6)
    square = ((0.6 - 0.0) ** 2 + (0.8 - 1.0) ** 2) / 6  # for (3, 4) / 5; the mean over all values
    assert float(found.loss.detach()) == pytest.approx(1.25 * square, rel=1e-5)
    found.features.sum().backward()  # straight-through: as without quantisation, except for normalisation
    normed = torch.nn.functional.normalize(f.detach().requires_grad_(), dim=1)
    assert f.grad is not None and f.grad.abs().sum() > 0 and normed.shape == f.shape
    assert torch.allclose(quantizer.decode(found.ids), found.features.detach(), atol=1e-6)


def test_two_maps_by_hand() -> None:
    """First the mean, then the residual of each cell; the convolutions are set to the identity."""
    quantizer = MapQuantizer(TokenizerShape(**{**SHAPE, "code_width": 1, "num_codes": 4, "scales": [1, 2]}))
    for convolution in quantizer.smooth:
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    quantizer.codes.data = torch.tensor([[4.0], [1.0], [-1.0], [9.0]])
    f = torch.tensor([[5.0, 3.0], [5.5, 4.9]]).view(1, 1, 2, 2)  # mean 4.6: code 4; residuals: 1, -1, 1.5, 0.9
    found = quantizer(f)
    assert found.ids.tolist() == [[0, 1, 2, 1, 1]]
    assert torch.allclose(found.features.flatten(), torch.tensor([5.0, 3.0, 5.0, 5.0]))
    assert torch.allclose(found.vectors.flatten(), torch.tensor([4.6, 1.0, -1.0, 1.5, 0.9]))
    first, second = (1 + 1 + 2.25 + 0.81) / 4, (0.25 + 0.01) / 4
    assert float(found.loss.detach()) == pytest.approx(1.25 * (first + second) / 2, rel=1e-5)
    assert torch.equal(quantizer.coarser(found.ids).flatten(), torch.full((4,), 4.0))
    assert torch.allclose(quantizer.decode(found.ids), found.features)
    assert torch.allclose(quantizer.decode(found.ids[:, :1]), torch.full((1, 1, 2, 2), 4.0))


def test_half_of_each_map_passes_through_its_convolution() -> None:
    quantizer = MapQuantizer(TokenizerShape(**{**SHAPE, "scales": [1, 2]}))
    for convolution in quantizer.smooth:
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    f = torch.randn(2, 2, 2, 2)
    ids = quantizer(f).ids
    expected = 0.5 * quantizer.codes[ids[:, :1]].mT.unflatten(2, (1, 1)) + 0.5 * quantizer.codes[ids[:, 1:]].mT.view(
        f.shape
    )
    assert torch.allclose(quantizer.decode(ids), expected, atol=1e-6)


def test_each_patch_is_one_cell_for_any_patch_size() -> None:
    assert strides((4, 4)) == [(2, 2), (2, 2)] and strides((7, 7)) == [(7, 7)] and strides((1, 1)) == [(1, 1)]
    assert strides((6, 2)) == [(2, 2), (3, 1)]
    for patch in ((4, 4), (7, 7), (6, 2)):
        shape = TokenizerShape(**{**SHAPE, "patch_shape": patch, "image_shape": (3 * patch[0], 2 * patch[1])})
        tokenizer = ImageTokenizer(shape)
        ids = tokenizer.encode(torch.randn(2, 1, *shape.image_shape))
        assert ids.shape == (2, 6) == (2, shape.num_tokens)
        assert tokenizer.decode(ids).shape == (2, 1, *shape.image_shape)


@pytest.mark.parametrize("scales", [None, [1, 2]])
def test_codes_start_at_vectors_and_dead_codes_are_revived(scales: list[int] | None) -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build()
    objective: Any = TokenizerSettings(num_codes=6, width=8, revive_steps=2, scales=scales, code_decay=None).build(
        backbone
    )
    pixels = torch.randn(8, 1, 8, 8)
    objective.prepare(backbone, [batch(pixels)])
    quantizer = objective.tokenizer.quantizer
    started = quantizer.codes.detach().clone()
    with torch.no_grad():
        quantizer.codes[4:] = 100.0 * torch.tensor([[1.0], [-1.0]])  # far from all vectors
    if scales is None:
        quantizer.codes.data[4:] = quantizer.codes.data[:1]  # ties go to the first code
    objective.train()
    for step in (1, 2):
        ids = objective.tokenizer.encode(pixels)
        assert not (ids >= 4).any()
        objective(backbone, batch(pixels[:4])), objective(backbone, batch(pixels[4:]))
        objective.after_step(backbone, step, 10)
        assert int(objective.usage.sum()) == (ids.numel() if step == 1 else 0)
    assert int(objective.revived) == 2 + int((ids.flatten().bincount(minlength=6)[:4] == 0).sum())
    vectors = objective.tokenizer.quantise(pixels).vectors
    moved = quantizer.codes[4:].detach()
    assert started.shape == quantizer.codes.shape and moved.abs().max() < 50
    if scales is None:
        assert (torch.cdist(moved, vectors).min(1).values < 1e-3).all()
    assert not objective.seen


def test_codes_are_running_means_of_their_vectors() -> None:
    """n <- n / 2 + count / 2, s <- s / 2 + sum / 2, code = s / n, over all micro-batches, without gradients."""
    backbone = NepaModel(**SIZES).build()
    settings = TokenizerSettings(num_codes=3, code_width=2, width=8, code_decay=0.5, revive_steps=2, scales=[1, 2])
    objective: Any = settings.build(backbone).train()
    codes = objective.tokenizer.quantizer.codes
    codes.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    objective.sums.copy_(codes)
    objective.seen = [(torch.tensor([0]), torch.tensor([[1.0, 0.0]])),
                      (torch.tensor([1, 0]), torch.tensor([[0.0, 2.0], [3.0, 0.0]]))]  # fmt: skip
    objective.after_step(backbone, 1, 10)
    assert objective.near.tolist() == [1.5, 1.0, 0.5]
    assert torch.allclose(codes, torch.tensor([[4 / 3, 0.0], [0.0, 1.5], [5.0, 5.0]]))  # the last got no vectors
    objective.seen = [(torch.tensor([0]), torch.tensor([[1.0, 7.0]]))]
    objective.after_step(backbone, 2, 10)
    assert int(objective.revived) == 1 and codes[2].tolist() == [1.0, 7.0] == objective.sums[2].tolist()
    assert objective.near.tolist() == [1.25, 0.5, 1.0]
    objective(backbone, batch(torch.randn(2, 1, 8, 8))).loss_sum.backward()
    assert codes.grad is None and objective.tokenizer.quantizer.smooth[0].weight.grad is not None
    by_gradient: Any = TokenizerSettings(num_codes=3, width=8, code_decay=None).build(backbone).train()
    by_gradient(backbone, batch(torch.randn(2, 1, 8, 8))).loss_sum.backward()
    assert by_gradient.tokenizer.quantizer.codes.grad.abs().sum() > 0


def test_the_codebook_must_match_the_images_and_the_grid() -> None:
    backbone = NepaModel(**SIZES).build()
    objective: Any = TokenizerSettings(num_codes=500, width=8).build(backbone)
    with pytest.raises(
        ConfigError, match=r"objective.num_codes 500: the patches of the first step's images give 8 diff"
    ):
        objective.prepare(backbone, [batch(torch.randn(2, 1, 8, 8))])
    with pytest.raises(ConfigError, match=r"objective.scales: the last should be the model's grid of patches, 2 x 2$"):
        TokenizerSettings(scales=[1, 3]).build(backbone)
    with pytest.raises(ConfigError, match=r"scales \[2, 1\] should rise"):
        TokenizerSettings(scales=[2, 1])


def test_tokenizers_are_saved_loaded_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build()
    objective: Any = TokenizerSettings(num_codes=4, width=8, scales=[1, 2]).build(backbone)
    values, weights = objective.folders(objective.state_dict())[FOLDER]
    folder = tmp_path / "run" / FOLDER
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    loaded = load_tokenizer(tmp_path / "run")
    pixels = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.encode(pixels), objective.tokenizer.encode(pixels))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    check_tokenizer(loaded.shape, backbone, "run")
    for changes, words in (
        ({"num_channels": 3}, "run was trained on 1 channels, the model has 3"),
        ({"image_size": 16}, "run was trained on 8 x 8 pixels, the model has 16 x 16"),
        ({"patch_size": 2}, "run was trained on 4 x 4 pixels a patch, the model has 2 x 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_tokenizer(loaded.shape, NepaModel(**{**SIZES, **changes}).build(), "run")
    with pytest.raises(ConfigError, match=r"objective.tokenizer: no such run or folder: .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="contains no finished tokenizer"):
        load_tokenizer(tmp_path)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot load the tokenizer"):
        load_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**values, "shape": {**values["shape"], "num_codes": "many"}}))
    with pytest.raises(ConfigError, match="num_codes"):
        load_tokenizer(folder)


def test_the_verdict_distinguishes_collapse_from_learning() -> None:
    settings = TokenizerSettings(num_codes=256)
    line = {"code_perplexity": 100.0, "psnr": 20.0, "psnr_flat": 15.0}
    assert settings.verdict([line]).word == "learning"
    assert settings.verdict([{**line, "psnr": 14.0}]).word == "undecided"
    assert settings.verdict([{**line, "code_perplexity": 3.0}]).word == "collapsed"
    assert settings.warnings([{**line, "code_perplexity": 3.0}] * 6)[0].startswith("collapse: only 3.0 of 256")
    assert not settings.warnings([line] * 6)
