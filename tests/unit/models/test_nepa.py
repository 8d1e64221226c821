"""The Hugging Face models of NEPA: loading, saving, sizes, attention, compilation, precision, classification."""

import json

import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)
from transformers.models.auto import modeling_auto

from nextembed.models.nepa import (
    NepaModel,
    ViTNepaBackbone,
    ViTNepaConfig,
    ViTNepaForImageClassification,
    ViTNepaForPreTraining,
    ViTNepaModel,
)
from nextembed.nn.losses import next_embedding

PAPER = {"use_gated_mlp": True, "hidden_act": "silu", "qk_norm": True}


def config(**fields) -> ViTNepaConfig:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 24,
        "patch_size": 8,
        "layerscale_value": 0.5,
    }
    return ViTNepaConfig(**(sizes | fields))


def build(kind=ViTNepaForPreTraining, attention="sdpa", **fields):
    torch.manual_seed(0)
    made = kind(config(**fields)).eval()
    made.set_attn_implementation(attention)
    with torch.no_grad():  # with an initial scale of 0.02, the effect of a layer is too small to measure
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return made


def images(*size, seed=1):
    return torch.randn(*(size or (2, 3, 24, 24)), generator=torch.Generator().manual_seed(seed))


# -- loading and saving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder as published by the authors of NEPA."""
    path = tmp_path_factory.mktemp("checkpoint")
    build(**PAPER).save_pretrained(path)
    fields = json.loads((path / "config.json").read_text())
    for ours in ("apply_layernorm", "reshape_hidden_states", "use_intermediate_loss", "out_features", "out_indices"):
        fields.pop(ours, None)
    (path / "config.json").write_text(json.dumps(fields | {"num_prompt_token": 0, "transformers_version": "4.56.2"}))
    half = [0.5, 0.5, 0.5]
    processor = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": half,
        "image_processor_type": "ViTImageProcessor",
        "image_std": half,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": 24, "width": 24},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        (AutoModel, ViTNepaModel),
        (AutoModelForPreTraining, ViTNepaForPreTraining),
        (AutoModelForImageClassification, ViTNepaForImageClassification),
        (ViTNepaBackbone, ViTNepaBackbone),  # AutoBackbone does not read local folders
    ],
)
def test_auto_classes_read_the_weights(folder, auto, kind):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model) is kind and not model.training
    new = {"classifier.weight", "classifier.bias"} if kind is ViTNepaForImageClassification else set()
    assert set(info["missing_keys"]) == new and not info["unexpected_keys"] and not info["mismatched_keys"]
    stored = load_file(folder / "model.safetensors")
    mine = {name if name.startswith("vit_nepa.") else f"vit_nepa.{name}": p for name, p in model.named_parameters()}
    assert all(torch.equal(mine[name], value) for name, value in stored.items())


def test_auto_config_and_image_processor(folder):
    settings = AutoConfig.from_pretrained(folder)
    assert isinstance(settings, ViTNepaConfig) and isinstance(AutoBackbone.from_config(settings), ViTNepaBackbone)
    pixels = AutoImageProcessor.from_pretrained(folder)(
        torch.full((3, 30, 40), 255, dtype=torch.uint8), return_tensors="pt"
    )["pixel_values"]
    assert pixels.shape == (1, 3, 24, 24)
    assert torch.equal(pixels, torch.ones_like(pixels))


def test_pipelines_take_the_models(folder):
    image = Image.new("RGB", (40, 30), "red")
    features = pipeline("image-feature-extraction", model=str(folder))(image)
    assert torch.tensor(features).shape == (1, 10, 32)
    scores = pipeline("image-classification", model=str(folder))(image)
    assert sum(row["score"] for row in scores) == pytest.approx(1, abs=1e-4)


def test_saved_names_are_the_official_ones(tmp_path):
    build(
        ViTNepaForImageClassification, num_hidden_layers=1, **PAPER, qk_norm_affine=True, qk_norm_bias=True
    ).save_pretrained(tmp_path)
    block = "vit_nepa.encoder.layer.0."
    both = ("weight", "bias")
    names = {"vit_nepa.embeddings.cls_token", block + "layer_scale.lambda1", block + "output.layer_scale.lambda1"}
    names |= {f"vit_nepa.embeddings.patch_embeddings.projection.{x}" for x in both}
    for part in ("query", "key", "value", "q_norm", "k_norm"):
        names |= {f"{block}attention.attention.{part}.{x}" for x in both}
    for part in (
        "attention.output.dense",
        "intermediate.gate_proj",
        "intermediate.up_proj",
        "output.dense",
        "layernorm_before",
        "layernorm_after",
    ):
        names |= {f"{block}{part}.{x}" for x in both}
    names |= {f"{part}.{x}" for part in ("vit_nepa.layernorm", "classifier") for x in both}
    assert set(load_file(tmp_path / "model.safetensors")) == names


def test_optional_parts():
    def names(**fields):
        return set(ViTNepaForPreTraining(config(**fields)).state_dict())

    assert not any("lambda1" in name for name in names(layerscale_value=None))
    assert not any("norm.weight" in name and "attention" in name for name in names(qk_norm=True))
    assert not any("gate_proj" in name for name in names(use_gated_mlp=False))
    assert not any("query.bias" in name for name in names(qkv_bias=False))


def test_new_weights():
    torch.manual_seed(0)
    model = ViTNepaForPreTraining(config(hidden_size=256, layerscale_value=0.1))
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "lambda1" in name:
            assert (parameter == 0.1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2) and parameter.abs().max() <= 2, name


# -- sizes


@pytest.mark.parametrize(("height", "width"), [(24, 24), (8, 8), (16, 40), (40, 8), (56, 24)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_size_that_is_a_multiple_of_the_patch_size(height, width, attention):
    model = build(attention=attention, **PAPER)
    out = model(images(2, 3, height, width))
    assert out.last_hidden_state.shape == (2, model.num_latents(height, width), 32)
    assert out.loss.isfinite()


def test_oblong_patches():
    model = build(patch_size=(4, 8))
    assert model(images(1, 3, 12, 16)).last_hidden_state.shape == (1, 7, 32) and model.num_latents(12, 16) == 7


def test_images_of_a_batch_are_independent():
    model = build(**PAPER)
    x = images(3, 3, 24, 16)
    whole = model(x).last_hidden_state
    assert torch.allclose(whole[1:2], model(x[1:2]).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 3, 25, 24), "25x24 .* 8x8"), ((1, 3, 24, 20), "24x20 .* 8x8"), ((1, 1, 24, 24), "1 channels.* 3")],
)
def test_invalid_images(size, message):
    for model in (build(), build(ViTNepaModel), build(ViTNepaBackbone), build(ViTNepaForImageClassification)):
        with pytest.raises(ValueError, match=message):
            model(images(*size))


def test_inconsistent_sizes():
    with pytest.raises(ValueError, match="num_attention_heads 5 does not divide hidden_size 32"):
        build(num_attention_heads=5)
    with pytest.raises(ValueError, match="head width 2"):
        build(num_attention_heads=16)(images())


# -- attention


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_causal_or_full_by_call_and_by_config(attention):
    x, changed = images(), images()
    changed[:, :, -8:, -8:] += 1  # the last patch
    for default in (True, False):
        model = build(attention=attention, is_causal=default, **PAPER)
        for call in (None, True, False):
            before, after = (model(v, is_causal=call).last_hidden_state[:, :-1] for v in (x, changed))
            causal = default if call is None else call
            assert ((before - after).abs().max() < 1e-5) == causal
        assert model.config.is_causal is default


def test_implementations_agree():
    x = images(2, 3, 24, 40)
    for fields in ({}, PAPER, {"is_causal": False}):
        eager, sdpa = (build(attention=name, **fields)(x) for name in ("eager", "sdpa"))
        assert torch.allclose(eager.last_hidden_state, sdpa.last_hidden_state, atol=1e-5)
        assert torch.allclose(eager.loss, sdpa.loss, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
def test_flex_attention_agrees(is_causal):
    x = images(2, 3, 24, 40)
    flex, sdpa = (build(attention=name, is_causal=is_causal, **PAPER) for name in ("flex_attention", "sdpa"))
    with torch.compiler.set_stance("force_eager"), torch.no_grad():  # the same computation without the compiler
        assert torch.allclose(flex(x).last_hidden_state, sdpa(x).last_hidden_state, atol=1e-5)


def test_attention_weights():
    model = build(attention="eager")
    weights = model(images(), output_attentions=True).attentions
    assert len(weights) == 2 and weights[0].shape == (2, 4, 10, 10)
    assert torch.allclose(weights[0].sum(-1), torch.ones(2, 4, 10), atol=1e-5)
    assert weights[0].triu(1).abs().max() == 0
    assert model(images(), output_attentions=True, is_causal=False).attentions[0].triu(1).abs().max() > 0


def test_masked_patches():
    x, mask = images(), torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4] = True
    hidden_pixels = x.clone()
    hidden_pixels[:, :, 8:16, 8:16] = 7.0  # patch 4
    for token in (False, True):
        model = ViTNepaModel(config(), use_mask_token=token).eval()
        assert (model.embeddings.mask_token is not None) is token
        one, two = (model(v, bool_masked_pos=mask) for v in (x, hidden_pixels))
        assert torch.allclose(one.last_hidden_state, two.last_hidden_state, atol=1e-6)
        assert not torch.allclose(one.input_embedding, two.input_embedding)  # the targets still depend on the pixels


# -- rollout


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("match_norm", [False, True])
def test_rollout_equals_full_recomputation(attention, match_norm):
    model, x = build(attention=attention, **PAPER), images(2, 3, 24, 40)
    cached = model.rollout(x, 4, 7, match_norm=match_norm)
    assert cached.shape == (2, 7, 32) and not cached.requires_grad
    full = model.rollout(x, 4, 7, match_norm=match_norm, use_cache=False)
    assert (cached - full).abs().max() <= 1e-5
    latents = model.embed({"pixel_values": x})
    z = latents.z[:, :5]
    length = z[:, 1:].norm(dim=-1).mean(1)[:, None, None]
    for step in range(7):  # written out: predict, append, repeat
        where = latents.coordinates[:, : z.shape[1]]
        predicted = model.encode(latents._replace(z=z, coordinates=where), "causal").last[:, -1:]
        assert (cached[:, step : step + 1] - predicted).abs().max() <= 1e-5
        step_in = predicted / predicted.norm(dim=-1, keepdim=True) * length if match_norm else predicted
        z = torch.cat((z, step_in), dim=1)


def test_rollout_reads_only_the_known_patches():
    model, x = build(**PAPER), images()
    changed = x.clone()
    changed[:, :, 8:] += 1
    assert torch.equal(model.rollout(x, 3, 6), model.rollout(changed, 3, 6))
    assert torch.allclose(model.rollout(x, 3, 1)[:, 0], model(x).last_hidden_state[:, 3], atol=1e-5)
    assert model.rollout(x, 0, 9).shape == (2, 9, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 5), "predict 5 patches after 5: the image has 9"),
        ((-1, 2), "after -1"),
        ((3, 0), "predict 0"),
        ((0, 3, True), "at least one known patch"),
    ],
)
def test_rollout_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build().rollout(images(), *arguments)


# -- training


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, x = build(**PAPER).train(), images()
    torch.manual_seed(3)
    model(x).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    layer = model.vit_nepa.encoder.layer[0].layernorm_before
    layer.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    model(x).loss.backward()
    assert len(calls) == 2  # it is recomputed in the backward pass
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_bfloat16_autocast_is_near_float32():
    model, x = build(**PAPER), images()
    full = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.loss.dtype == torch.float32
    assert abs(full.loss - half.loss) < 0.02
    cosine = torch.cosine_similarity(full.last_hidden_state, half.last_hidden_state.float(), dim=-1)
    assert cosine.min() > 0.98
    half.loss.backward()
    assert all(g.isfinite().all() for g in gradients(model).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    out = build(**PAPER).to(dtype)(images())
    assert out.last_hidden_state.dtype == dtype and out.loss.isfinite()


def test_compiles_in_one_graph():
    """Without code generation: forward and backward graphs are captured and run eagerly."""
    model, x = build(**PAPER, num_hidden_layers=1), images()
    eager = model(x)
    eager.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert torch.allclose(compiled.last_hidden_state, eager.last_hidden_state, atol=1e-5)
    compiled.loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


@pytest.mark.parametrize("kind", [ViTNepaForPreTraining, ViTNepaForImageClassification, ViTNepaBackbone])
def test_traces_in_one_graph_in_training(kind):
    model = build(kind, num_hidden_layers=1, drop_path_prob=0.1, hidden_dropout_prob=0.1).train()
    out = torch.compile(model, fullgraph=True, backend="eager")(images())
    assert all(v.isfinite().all() for v in (out.feature_maps if kind is ViTNepaBackbone else out.to_tuple()))


def test_stochastic_depth_rises_linearly():
    stack = ViTNepaModel(config(num_hidden_layers=5, drop_path_prob=0.2)).encoder
    assert stack.drop_path_probs == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    dropped = [(path == 0).float().mean().item() for path in stack.train().paths(torch.zeros(20_000, 1, 1))[1:]]
    assert dropped == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=0.01)
    assert stack.eval().paths(torch.zeros(2, 1, 1)) == [None] * 5
    assert ViTNepaModel(config(num_hidden_layers=1, drop_path_prob=0.2)).encoder.drop_path_probs == [0]


def test_stochastic_depth_drops_a_whole_sample_and_keeps_the_mean():
    stack = build(ViTNepaModel, drop_path_prob=0.5).encoder.train()
    layer, path = stack.layer[-1], stack.paths(torch.zeros(4000, 1, 1))[-1][0]
    same = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(same.weight)
    zero, one, scale = torch.zeros(4000, 1, 1), torch.ones(4000, 3, 2), torch.ones(2)
    added = layer.add(zero, same, one, scale, path)
    assert (added == added[:, :1, :1]).all() and set(added.unique().tolist()) == {0.0, 2.0}
    assert added.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(layer.eval().add(torch.zeros_like(one), same, one, scale, None), one)


def test_positions_are_augmented_in_training_only():
    model, batch = build(pos_embed_rescale=2.0), {"pixel_values": images()}
    still, again = model.embed(batch).coordinates, model.embed(batch).coordinates
    assert torch.equal(still, again)
    model.train()
    factors = []
    for _ in range(20):
        moved = model.embed(batch).coordinates
        assert torch.equal(moved[:, 0], torch.zeros(2, 2))  # the begin token stays at the origin
        for sample, plain in zip(moved, still):
            factor = (sample / plain)[plain != 0]
            assert torch.allclose(factor, factor[0].expand_as(factor), atol=1e-5)  # one factor for all patches
            factors.append(factor[0].item())
    assert min(factors) >= 0.5 and max(factors) <= 2 and max(factors) / min(factors) > 1.2
    model.config.pos_embed_rescale = None
    assert torch.equal(model.embed(batch).coordinates, still)


def test_intermediate_loss():
    model, x = build(num_hidden_layers=4), images()
    plain = model(x, output_hidden_states=True)
    model.config.use_intermediate_loss = True
    out = model(x)
    assert out.hidden_states is None
    losses = [next_embedding(h, plain.input_embedding) for h in plain.hidden_states[1:-1]]
    assert out.loss.item() == pytest.approx(plain.loss.item() + sum((s / n).item() for s, n in losses) / 3, abs=1e-5)
    some = model(x, output_hidden_states=[0, -2]).hidden_states
    assert [h is not None for h in some] == [True, False, False, True, False]
    assert all(h is not None for h in model(x, output_hidden_states=True).hidden_states)
    assert build(num_hidden_layers=1, use_intermediate_loss=True)(x).loss.isfinite()


def test_models_are_in_the_tables_of_transformers():
    """Generic model tests of transformers choose labels and trainable models by these tables."""
    tables = {"MODEL_MAPPING": ViTNepaModel, "MODEL_FOR_PRETRAINING_MAPPING": ViTNepaForPreTraining}
    tables |= {"MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": ViTNepaForImageClassification}
    tables |= {"MODEL_FOR_BACKBONE_MAPPING": ViTNepaBackbone}
    for name, model in tables.items():
        assert getattr(modeling_auto, f"{name}_NAMES")["vit_nepa"] == model.__name__
        assert getattr(modeling_auto, name)[ViTNepaConfig] is model


# -- classification and backbone


def test_classifier_reads_the_mean_of_patches_or_the_last_latent():
    for pooling in (True, False):
        model = build(ViTNepaForImageClassification, add_pooling_layer=pooling, num_labels=5)
        assert isinstance(model.fc_norm, nn.LayerNorm) is pooling
        out = model(images(), output_hidden_states=True)
        hidden = out.hidden_states[-1]
        pooled = model.fc_norm(hidden[:, 1:].mean(1)) if pooling else hidden[:, -1]
        assert out.logits.shape == (2, 5) and torch.allclose(out.logits, model.classifier(pooled), atol=1e-6)


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        (None, torch.tensor([1, 4]), nn.CrossEntropyLoss()),
        ("single_label_classification", torch.tensor([1, 4]), nn.CrossEntropyLoss()),
        ("multi_label_classification", torch.eye(5)[:2], nn.BCEWithLogitsLoss()),
        ("regression", torch.arange(10.0).view(2, 5), nn.MSELoss()),
    ],
)
def test_classification_loss(problem, labels, loss):
    model = build(ViTNepaForImageClassification, num_labels=5, problem_type=problem)
    out = model(images(), labels=labels)
    assert out.loss.item() == pytest.approx(loss(out.logits, labels).item(), abs=1e-6)
    assert model(images()).loss is None


@pytest.mark.parametrize("is_causal", [True, False])
def test_backbone_gives_feature_maps(is_causal):
    x = images(2, 3, 24, 40)
    backbone = build(ViTNepaBackbone, out_features=["stem", "stage1", "stage2"], is_causal=is_causal)
    assert backbone.channels == [32] * 3
    maps = backbone(x).feature_maps
    hidden = backbone.encode(backbone.embed({"pixel_values": x}), output_layers=True)
    expected = [backbone.layernorm(hidden.layers[0]), backbone.layernorm(hidden.layers[1]), hidden.last]
    for one, layer in zip(maps, expected, strict=True):
        assert one.shape == (2, 32, 3, 5)
        assert torch.allclose(one[:, :, 1, 2], layer[:, 1 + 7], atol=1e-6)  # row 1, column 2 is patch 7
    backbone.config.reshape_hidden_states = backbone.config.apply_layernorm = False
    flat = backbone(x).feature_maps
    assert torch.allclose(flat[1], hidden.layers[1][:, 1:], atol=1e-6)


def test_settings_build_the_configured_model():
    model = NepaModel(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4).build()
    assert model.config.intermediate_size == 128 and model.config.use_gated_mlp and model.config.qk_norm
    assert model.num_latents(16, 16) == 17


@pytest.mark.parametrize("kind", [ViTNepaForPreTraining, ViTNepaForImageClassification, ViTNepaBackbone])
def test_offloaded_weights_are_loaded_on_demand(kind):
    def result(model):
        out = model(images())
        return (
            out.feature_maps[0] if kind is ViTNepaBackbone else out[0] if kind is ViTNepaForPreTraining else out.logits
        )

    model = build(kind, **PAPER)
    with torch.no_grad():
        expected = result(model)
        cpu_offload(model, torch.device("cpu"))
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert torch.allclose(result(model), expected, atol=1e-5)
