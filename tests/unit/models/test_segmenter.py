"""Segmentation models: shapes, loss, pretrained weights with both heads, round trips, clear errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, BertConfig, pipeline

from nextembed.errors import ConfigError
from nextembed.models.nepa import (
    NepaModel,
    NepaSegmenter,
    ViTNepaBackbone,
    ViTNepaConfig,
    ViTNepaForSemanticSegmentation,
)

ARCHITECTURE = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
                "intermediate_size": 48, "layerscale_value": 1.0}  # fmt: skip
NAMES = ["background", "cat", "dog"]
HEADS = ["linear", "upernet"]


def part(head="linear", **settings):
    if "pretrained" not in settings:
        settings["architecture"] = ARCHITECTURE
    return NepaSegmenter(head=head, head_width=16, **settings)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a pretraining model, and the model."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("pretrained")
    model = NepaModel(**ARCHITECTURE).build().eval()
    model.save_pretrained(folder)
    return str(folder), model


def test_linear_head_gives_logits_per_patch_for_any_size():
    model = part().build(NAMES).eval()
    pixels, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 3, (2, 32, 48))
    labels[0, :5] = 255
    out = model(pixel_values=pixels, labels=labels)
    assert out.logits.shape == (2, 3, 4, 6)
    resized = F.interpolate(out.logits, (32, 48), mode="bilinear", align_corners=False)
    known = labels != 255
    expected = -resized.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0][known].mean()
    torch.testing.assert_close(out.loss, expected)
    with_states = model(pixel_values=pixels, output_hidden_states=True)
    assert len(with_states.hidden_states) == 5 and model(pixel_values=pixels).hidden_states is None
    assert isinstance(model(pixel_values=pixels, return_dict=False), tuple)


def test_logits_are_aligned_with_patches():
    """A change in one patch changes the logits of that patch most."""
    torch.manual_seed(0)
    model = part(layers=[1]).build(NAMES).eval()
    pixels = torch.randn(1, 3, 32, 48)
    changed = pixels.clone()
    changed[..., 8:16, 40:48] = 5.0  # row 1, column 5
    moved = (model(changed).logits - model(pixels).logits).abs().sum(1)[0]
    assert divmod(int(moved.argmax()), 6) == (1, 5)


def test_linear_head_reads_several_normalised_layers():
    model = part(layers=[2, 4]).build(NAMES).eval()
    pixels = torch.randn(1, 3, 32, 32)
    assert model.classifier.in_channels == 64
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    both = torch.cat((model.vit_nepa.layernorm(states[2]), states[4]), dim=-1)[:, 1:]
    expected = (both @ model.classifier.weight[:, :, 0, 0].T + model.classifier.bias).mT.unflatten(2, (4, 4))
    torch.testing.assert_close(model(pixel_values=pixels).logits, expected)


@pytest.mark.parametrize("attention", ["full", "causal"])
@pytest.mark.parametrize("head", HEADS)
def test_attention_is_as_configured(head, attention):
    """With full attention, the first patch's state depends on the last patch; with causal attention it does not."""
    model = part(head, attention=attention).build(NAMES).eval()
    trunk = model.vit_nepa if head == "linear" else model.backbone
    pixels = torch.randn(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., 24:, 24:] += 1.0
    first, second = (trunk.encode(trunk.embed({"pixel_values": p})).last[:, 1] for p in (pixels, changed))
    assert torch.equal(first, second) is (attention == "causal")


def test_upernet_logits_have_image_size_and_all_parameters_get_gradients():
    model = part("upernet").build(NAMES).train()
    out = model(pixel_values=torch.randn(2, 3, 32, 48), labels=torch.randint(0, 3, (2, 32, 48)))
    assert out.logits.shape == (2, 3, 32, 48)
    out.loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without <= {"backbone.fpn.up4.0.bias"}, without  # batch norm removes this mean
    assert part("upernet", auxiliary_loss_weight=0).build(NAMES).auxiliary_head is None


def test_pyramid_has_four_scales_and_is_off_by_default():
    config = ViTNepaConfig(**ARCHITECTURE, add_fpn=True, out_features=["stage1", "stage2", "stage3", "stage4"])
    maps = ViTNepaBackbone(config).eval()(torch.randn(1, 3, 32, 48)).feature_maps
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    names = {n for n, _ in ViTNepaBackbone(ViTNepaConfig(**ARCHITECTURE)).named_parameters()}
    with_fpn = {n for n, _ in ViTNepaBackbone(config).named_parameters()}
    assert {n for n in with_fpn if not n.startswith("fpn.")} == names
    assert ViTNepaConfig().add_fpn is False
    with pytest.raises(ValueError, match="four out_features"):
        ViTNepaConfig(**ARCHITECTURE, add_fpn=True)


def test_upernet_supports_odd_patch_grids():
    model = part("upernet").build(NAMES).eval()
    assert model(torch.randn(1, 3, 24, 40)).logits.shape == (1, 3, 24, 40)


@pytest.mark.parametrize("head", HEADS)
def test_pretrained_weights_reach_the_trunk(head, pretrained):
    folder, source = pretrained
    torch.manual_seed(0)
    model = part(head, pretrained=folder).build(NAMES).eval()
    trunk = model.vit_nepa if head == "linear" else model.backbone
    own = dict(trunk.named_parameters())
    for name, value in source.vit_nepa.named_parameters():
        assert torch.equal(own[name], value), name
    scratch = part(head, pretrained=folder, from_scratch=True).build(NAMES)
    trunk = scratch.vit_nepa if head == "linear" else scratch.backbone
    assert not torch.equal(trunk.encoder.layer[0].attention.attention.query.weight,
                           source.vit_nepa.encoder.layer[0].attention.attention.query.weight)  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_with_the_auto_class(head, tmp_path):
    settings = part(head)
    model = settings.build(NAMES).eval()
    model.save_pretrained(tmp_path)
    settings.processor().save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(pixels).logits, model(pixels).logits)
    assert [again.config.id2label[i] for i in range(3)] == NAMES
    # it can also be fine-tuned further, with its own head
    more = part(head, pretrained=str(tmp_path)).build(NAMES).eval()
    assert torch.equal(more(pixels).logits, model(pixels).logits)
    other = part(head, pretrained=str(tmp_path), new_head=True).build(["a", "b"]).eval()
    assert other(pixels).logits.shape[1] == 2
    with pytest.raises(ConfigError, match=r"has a head for 3 classes \(background, cat, dog\), the data has 2"):
        part(head, pretrained=str(tmp_path)).build(["a", "b"])
    if head == "upernet":
        with pytest.raises(ConfigError, match="is a UPerNet; set"):
            part("linear", pretrained=str(tmp_path)).build(NAMES)


@pytest.mark.parametrize("head", HEADS)
def test_pipeline_gives_masks_of_image_size(head, tmp_path):
    settings = part(head)
    settings.build(NAMES).save_pretrained(tmp_path)
    settings.processor().save_pretrained(tmp_path)
    answers = pipeline("image-segmentation", model=str(tmp_path))(Image.new("RGB", (50, 70), "red"))
    assert {answer["label"] for answer in answers} <= set(NAMES)
    assert sum(int((np.asarray(answer["mask"]) > 0).sum()) for answer in answers) == 50 * 70
    assert all(answer["mask"].size == (50, 70) for answer in answers)


def test_image_processor_converts_logits_to_maps():
    processor = part().processor()
    model = part().build(NAMES).eval()
    inputs = processor(Image.new("RGB", (64, 48), "blue"), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    (answer,) = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[(48, 64)])
    assert answer.shape == (48, 64)
    white = processor(Image.new("RGB", (9, 9), "white"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(white, torch.ones(1, 3, 32, 32))


def test_a_segmenters_weights_load_as_a_backbone(tmp_path):
    model = part().build(NAMES).eval()
    model.save_pretrained(tmp_path)
    backbone = ViTNepaBackbone.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 32)
    expected = model(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mT.unflatten(2, (4, 4))
    torch.testing.assert_close(backbone(pixels).feature_maps[-1], expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "upernet", "num_layers": 3}, "upernet needs at least 4 layers, the model has 3"),
        ({"layers": [4, 2]}, r"model.layers \[4, 2\]: give increasing numbers from 1 to 4"),
        ({"layers": [5]}, "give increasing numbers from 1 to 4"),
        ({"head": "upernet", "layers": [1, 2]}, "UPerNet reads 4 layers"),
        ({"image_size": 36}, "model.image_size 36 is not a multiple of the patch size 8"),
        ({"num_layers": 9}, "the model has only 4"),
    ],
)
def test_sizes_that_do_not_fit(settings, words):
    with pytest.raises(ConfigError, match=words):
        part(**settings).build(NAMES)


def test_checkpoint_of_another_model_type(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a model of type 'bert', not vit_nepa"):
        part(pretrained=str(tmp_path)).build(NAMES)
    with pytest.raises(ConfigError, match="name the checkpoint to fine-tune"):
        NepaSegmenter().build(NAMES)


@pytest.mark.parametrize(
    ("num_layers", "layers"), [(12, [4, 6, 8, 12]), (24, [8, 12, 16, 24]), (4, [1, 2, 3, 4]), (5, [1, 2, 3, 5])]
)
def test_upernet_reads_beits_layers(num_layers, layers):
    config = NepaSegmenter(head="upernet", architecture=ARCHITECTURE | {"num_hidden_layers": num_layers})
    assert config.trunk_config(NAMES).out_indices == layers


def test_gradient_checkpointing_under_upernet_gives_the_same_gradients():
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        model = part("upernet").build(NAMES).train()
        model.backbone.config.pos_embed_rescale = None
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.backbone.encoder.layer[0].gradient_checkpointing
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(2, 3, 32, 32, generator=generator)
        model(pixels, labels=torch.randint(0, 3, (2, 32, 32), generator=generator)).loss.backward()
        grads.append([p.grad for p in model.backbone.encoder.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_class_is_public():
    import nextembed

    assert nextembed.ViTNepaForSemanticSegmentation is ViTNepaForSemanticSegmentation
