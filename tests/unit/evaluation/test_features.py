import pytest
import torch
from torch import nn

from nextembed.evaluation.features.extract import FeatureKey, batches, extract, extract_pixels, feature_keys
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ViTNepaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        layerscale_value=0.5,
    )
    return ViTNepaForPreTraining(config)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(7, 1, 8, 8, generator=generator) * 2 - 1
    return [{"pixel_values": image, "label": i % 3} for i, image in enumerate(images)]


def test_features_are_those_of_a_direct_call(model, samples):
    features = extract(model, samples, feature_keys(3), batch_size=3)
    images = torch.stack([sample["pixel_values"] for sample in samples])
    model.eval()
    with torch.no_grad():
        for attention in ("causal", "full"):
            out = model.vit_nepa(images, is_causal=attention == "causal", output_hidden_states=True)
            for layer, hidden in enumerate(out.hidden_states):
                want = {"mean": hidden[:, 1:].mean(1), "last": hidden[:, -1], "first": hidden[:, 0]}
                for pooling, value in want.items():
                    key = FeatureKey(layer, pooling, attention)
                    if key in features.values:
                        torch.testing.assert_close(features.values[key], value, atol=1e-6, rtol=1e-5)
    assert features.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert all(value.shape == (7, 16) and value.dtype == torch.float32 for value in features.values.values())


def test_keys_leave_out_uninformative_features(model, samples):
    keys = feature_keys(3)
    assert len(keys) == len(set(keys)) == 2 + 3 * 5
    left_out = [FeatureKey(0, "first", "full"), FeatureKey(2, "first", "causal")]
    assert not set(left_out) & set(keys)
    blind = extract(model, samples, left_out)
    assert all((value - value[0]).abs().max() < 1e-6 for value in blind.values.values())
    assert feature_keys(3, [-1], ["mean"], ["full"]) == [FeatureKey(3, "mean", "full")]
    with pytest.raises(ValueError, match="layer 4 is not in"):
        feature_keys(3, [4])


def test_extraction_has_no_side_effects(model, samples):
    model.train()
    model.vit_nepa.layernorm.eval()
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    extract(model, samples, feature_keys(3), batch_size=2)
    assert torch.equal(torch.rand(1), want)
    assert model.training and model.vit_nepa.encoder.training and not model.vit_nepa.layernorm.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_training_mode_is_left_before_extraction(model, samples):
    # In training mode, positions are scaled at random, so two calls would differ.
    model.train()
    one, two = (extract(model, samples, [FeatureKey(3, "mean", "full")]) for _ in range(2))
    assert torch.equal(*(f.values[3, "mean", "full"] for f in (one, two)))


def test_modes_are_restored_after_an_error(model):
    class Broken(list):
        def __getitem__(self, index):
            raise RuntimeError("broken")

    model.train()
    with pytest.raises(RuntimeError, match="broken"):
        extract(model, Broken([0]), feature_keys(3))
    assert all(module.training for module in model.modules() if not isinstance(module, nn.LayerNorm))


def test_pixels_of_large_images_are_averaged():
    image = torch.arange(64.0).view(1, 64, 1).expand(1, 64, 64)
    features = extract_pixels([{"pixel_values": image}])
    grid = features.values["pixels"].view(32, 32)
    assert torch.equal(grid[:, 0], torch.arange(32.0) * 2 + 0.5)
    assert features.labels.tolist() == [-100]
    small = torch.rand(3, 5, 7)
    assert torch.equal(extract_pixels([{"pixel_values": small}]).values["pixels"][0], small.flatten())


def test_batches_keep_order(samples):
    sizes = [len(batch["labels"]) for batch in batches(samples, 3)]
    assert sizes == [3, 3, 1]
