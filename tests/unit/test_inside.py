"""The numbers behind the figures, and `visualize` with valid and invalid input."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import nextembed
from nextembed.errors import ConfigError, DataError, NextEmbedError
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining
from nextembed.report.figures import glow
from nextembed.report.inside import Look, look_inside, pca_colours
from nextembed.report.readouts import psnr
from nextembed.report.visualize import default_patch, objective_notes


def build(hidden=64, heads=2, layers=3, channels=3, seed=0):
    torch.manual_seed(seed)
    config = ViTNepaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_channels=channels,
        layerscale_value=0.5,
    )
    model = ViTNepaForPreTraining(config).eval()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def look(model, pixels, **options):
    return look_inside(model, pixels, 0.5, 0.5, Look(**options))


def picture(width=20, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


# -- numbers


def test_surprise_is_the_loss(model, pixels):
    inside = look(model, pixels)
    assert inside.surprise.shape == (3, 16)
    assert inside.surprise.mean().item() - 1 == pytest.approx(model(pixels).loss.item(), abs=1e-6)


def test_cosines_are_those_of_the_next_prediction(model, pixels):
    inside = look(model, pixels)
    with torch.no_grad():
        out = model(pixels)
    hidden, z = out.last_hidden_state[1], out.input_embedding[1, 1:]
    for query in (0, 6, 15):  # the hidden state after patch q is at position q + 1
        expected = torch.cosine_similarity(hidden[query + 1, None], z, dim=-1)
        torch.testing.assert_close(inside.cosines(query, 1), expected, atol=1e-5, rtol=1e-4)
    assert inside.cosines(6, 1)[7] == pytest.approx(1 - inside.surprise[1, 7].item(), abs=1e-5)


def test_attention_and_layers_match_the_model(model, pixels):
    inside = look(model, pixels, layers=[0, -1], attention_layers=[1, -1])
    with torch.no_grad():
        out = model(pixels, output_attentions=True, output_hidden_states=True)
    assert list(inside.attention) == [1, 3] and list(inside.layers) == [0, 3]
    torch.testing.assert_close(inside.attention[3], out.attentions[2])
    torch.testing.assert_close(inside.layers[3], out.last_hidden_state[:, 1:])
    torch.testing.assert_close(inside.layers[0], inside.latents)
    assert inside.attention[1][:, :, 4, 5:].abs().max() == 0
    full = look(model, pixels, mode="full", attention_layers=[1])
    assert full.attention[1][:, :, 4, 5:].min() > 0


def test_pca_is_deterministic_and_its_sign_is_fixed():
    features = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [9.0, 3, 1, 1, 1, 1, 1, 1]
    )
    colours = pca_colours(features, (4, 4))
    assert colours.shape == (2, 16, 3) and colours.min() == 0 and colours.max() == 1
    assert torch.equal(colours, pca_colours(features.clone(), (4, 4)))
    moved = pca_colours(features + 5, (4, 4))  # the mean has no effect
    torch.testing.assert_close(moved, colours, atol=1e-3, rtol=0)
    for sign in (1, -1):  # red is the first component, signed by its largest loading
        red = pca_colours(sign * features, (4, 4))[..., 0].flatten()
        assert torch.corrcoef(torch.stack((red, sign * features[..., 0].flatten())))[0, 1] > 0.9


def test_pca_with_fewer_directions_than_colours():
    colours = pca_colours(torch.arange(16.0).view(1, 16, 1), (4, 4))
    assert colours[0, 0, 0] == 0 and colours[0, -1, 0] == 1 and colours[..., 1:].abs().max() == 0
    assert pca_colours(torch.ones(1, 4, 5), (2, 2)).isfinite().all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_foreground_excludes_what_fills_the_border(sign):
    features = torch.randn(1, 36, 6, generator=torch.Generator().manual_seed(0)) * 0.1
    centre = torch.zeros(6, 6, dtype=torch.bool)
    centre[2:4, 2:4] = True
    features[0, centre.flatten()] += sign * 5 * torch.eye(6)[0]
    colours = pca_colours(features, (6, 6), foreground=True)[0]
    white = (colours == 1).all(-1)
    assert torch.equal(~white, centre.flatten())


def test_true_latents_are_the_image_and_predictions_are_not(model, pixels):
    (squares,) = look(model, pixels).readouts
    images = (pixels + 1) / 2
    assert squares.name == "least squares" and "determine all 48 values of its pixels" in squares.note
    torch.testing.assert_close(squares.true, images, atol=1e-4, rtol=0)
    assert psnr(images, squares.true).min() > 80 > 25 > psnr(images, squares.predicted).max()
    assert not torch.equal(look(model, pixels, length="true").readouts[0].predicted, squares.predicted)


def test_narrow_embedding_is_reported_as_a_projection(pixels):
    (squares,) = look(build(hidden=16), pixels).readouts
    assert "a projection: 16 numbers per patch determine 16 directions of its 48 values" in squares.note
    assert psnr((pixels + 1) / 2, squares.true).max() < 40


def test_psnr_by_hand():
    images = torch.full((2, 3, 4, 4), 0.5)
    found = psnr(images, images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([20.0, 40]), atol=1e-3, rtol=0)
    assert psnr(images, images).tolist() == [100, 100]


@pytest.mark.parametrize("num_known", [0, 1, 6, 15])
def test_rollout_keeps_the_known_patches(model, pixels, num_known):
    inside = look(model, pixels, num_known=num_known)
    rollout = inside.readouts[0].rollout
    known = (torch.arange(16) < num_known).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(rollout[..., known], inside.images[..., known])
    assert (rollout != inside.images)[..., ~known].float().mean() > 0.9


def test_rollout_does_not_see_the_rest(model, pixels):
    other = pixels.clone()
    other[..., 8:, :] = 0.3  # the lower half: patches from 8 on
    found, changed = (look(model, images).readouts[0].rollout for images in (pixels, other))
    torch.testing.assert_close(found[..., 8:, :], changed[..., 8:, :])


def test_grey_images_and_other_sizes():
    model = build(hidden=16, channels=1)
    inside = look(model, torch.rand(2, 1, 8, 24) * 2 - 1)
    assert inside.grid == (2, 6) and inside.images.shape == (2, 3, 8, 24) and inside.num_known == 6
    assert inside.readouts[0].rollout.shape == (2, 3, 8, 24)


def test_bad_layers_and_numbers(model, pixels):
    for options, words in (
        ({"layers": [4]}, "layer 4 is not in 0..3"),
        ({"layers": [-5]}, "layer -5 is not in 0..3"),
        ({"attention_layers": [0]}, "layer 0 is not in 1..3"),
        ({"num_known": 16}, "num_known 16 is not in 0..15"),
    ):
        with pytest.raises(ConfigError, match=words):
            look(model, pixels, **options)


def test_glow_shows_map_and_image():
    overlay = np.zeros((2, 2, 4), np.uint8)
    overlay[0, 0] = 255
    found = glow(torch.full((3, 8, 8), 0.5), overlay)
    assert found.shape == (8, 8, 3) and (found[:4, :4] == 255).all() and (found[4:, 4:] == found[7, 7]).all()
    assert 40 < found[7, 7, 0] < 80


# -- visualize


def test_model_and_image_give_a_figure(model, tmp_path):
    model.train().set_attn_implementation("sdpa")
    found = nextembed.visualize(model, picture(), tmp_path / "out" / "a.png", patch=(1, 2), heads=[2])
    assert model.training and model.config._attn_implementation == "sdpa"
    model.eval().set_attn_implementation("eager")
    assert found.patch == 6 and found.paths == [tmp_path / "out/a.png"]
    assert Image.open(found.paths[0]).width == 1800 and list((tmp_path / "out").iterdir()) == found.paths
    names = set(found.drawing.boxes)
    assert {"image", "cosine", "surprise", "pca_layer0", "pca_layer1", "pca_layer3", "known", "rollout1"} <= names
    assert {name for name in names if name.startswith("attention")} == {f"attention_layer{i}_head2" for i in (1, 2, 3)}
    assert found._repr_png_() == (tmp_path / "out/a.png").read_bytes()  # the same each time
    again = nextembed.visualize(model, np.asarray(picture()), patch=6, heads=[2])
    assert again._repr_png_() == found._repr_png_() and again.paths == []


def test_folder_gets_every_panel(model, tmp_path):
    found = nextembed.visualize(model, "emoji", tmp_path / "panels", index=3, layers=[2])
    names = {path.stem for path in (tmp_path / "panels").glob("*.png")}
    assert names == {"all", *found.drawing.boxes} and {"attention_layer2_head1", "pca_layer2"} <= names
    for path in found.paths[1:]:
        assert min(Image.open(path).size) > 100
    whole = Image.open(io.BytesIO(found._repr_png_())).size
    assert Image.open(tmp_path / "panels/all.png").size == whole


def test_many_heads_last_patch_and_wide_image(tmp_path):
    found = nextembed.visualize(build(heads=16), picture(), patch=23, size=(16, 24), foreground=True)
    assert found.inside.grid == (4, 6) and sum(name.startswith("attention") for name in found.drawing.boxes) == 48


def test_default_patch_is_before_the_most_contrast(model, pixels):
    flat = torch.zeros(1, 3, 16, 16)
    flat[..., 4:8, 8:12] = pixels[:1, :, 4:8, 8:12]
    assert default_patch(look(model, flat)) == 5  # patch 6 has the most contrast


def test_other_training_objectives_are_noted():
    assert objective_notes({}, "causal") == objective_notes({"objective": {"kind": "next_embedding"}}, "causal") == []
    (note,) = objective_notes({"objective": {"distance": "info_nce", "shift": True}}, "causal")
    assert note.startswith("Trained with distance info_nce: ")
    (note,) = objective_notes({"objective": {"kind": "mine.py:Mine"}}, "causal")
    assert note.startswith("Trained with objective mine.py:Mine: ")
    assert "predictions have seen the answer" in objective_notes({}, "full")[0]


def test_bad_input_is_one_line_and_writes_nothing(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "vit").mkdir()
    vit = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "vit/config.json").write_text(json.dumps(vit))
    (tmp_path / "notes.txt").write_text("no image")
    picture().save(tmp_path / "a.png")
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[dict, type, str]] = [
        ({"image": tmp_path / "notes.txt"}, DataError, "cannot read the image notes.txt: not an image file"),
        ({"image": "no/such/file.png"}, ConfigError, "no such file or folder: no/such/file.png"),
        ({"image": "emoji", "index": 10**6}, ConfigError, "index 1000000 is not in 0.."),
        ({"patch": 16}, ConfigError, "patch 16 is not in 0..15"),
        ({"patch": (4, 0)}, ConfigError, "patch 4,0 is not in rows 0..3"),
        ({"size": 18}, ConfigError, "size 18x18 is not a multiple of the model's patches of 4x4"),
        ({"size": 4}, ConfigError, "a single patch"),
        ({"size": (0, 16)}, ConfigError, "size 0x16"),
        ({"heads": [3]}, ConfigError, "head 3 is not in 1..2"),
        ({"heads": []}, ConfigError, "heads: name at least one"),
        ({"layers": [9]}, ConfigError, "layer 9 is not in 0..3"),
        ({"num_known": 99}, ConfigError, "num_known 99"),
        ({"weights": "ema"}, ConfigError, "has no ema weights; there is raw"),
        ({"model": tmp_path / "nowhere"}, ConfigError, "no such run or checkpoint"),
        ({"model": tmp_path / "vit"}, ConfigError, "cannot load the model in"),
        ({"model": torch.nn.Linear(2, 2)}, ConfigError, "contains a Linear, not a model of"),
        ({"decoders": [tmp_path]}, ConfigError, "contains no finished decoder"),
        ({"output": tmp_path / "out.jpg"}, ConfigError, "written to a .png file or a folder, not .jpg"),
        ({"output": tmp_path / "a.png" / "b.png"}, ConfigError, "cannot write"),
    ]
    for options, kind, words in cases:
        settings = {"model": tmp_path / "saved", "image": tmp_path / "a.png", "output": tmp_path / "out.png", **options}
        with pytest.raises(NextEmbedError) as err:
            nextembed.visualize(**settings)
        assert type(err.value) is kind and words in str(err.value) and "\n" not in str(err.value), options
        assert sorted(tmp_path.rglob("*")) == before
