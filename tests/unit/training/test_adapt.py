"""Frozen parameters and LoRA."""

import peft
import pytest
import torch

from nextembed.core.objective import PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError, MissingExtra
from nextembed.models.nepa.settings import NepaClassifier, NepaModel
from nextembed.models.omni import OmniParts
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.objectives.supervised import ClassificationSettings
from nextembed.training.adapt import (
    LoraSettings,
    adapt,
    freeze,
    has_lora,
    merged,
    shard,
    trained_parameters,
    write_adapter,
)
from nextembed.training.optim import parameter_groups
from nextembed.training.settings import TrainConfig
from nextembed.training.watch import EmaWeights

NAMES = ["a", "b", "c"]
SIZES = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 16, "layerscale_value": 1.0}  # fmt: skip


def classifier(lora=None, frozen=(), seed=0):
    torch.manual_seed(0)
    backbone = NepaClassifier(architecture=NepaModel(**SIZES)).build(NAMES)
    adapt(backbone, TrainConfig(max_steps=1, freeze=list(frozen), lora=lora), seed)
    return PretrainingModel(backbone, ClassificationSettings().build(backbone))


def shaken(backbone):
    """Adds random values, because LoRA is initialised to a zero update."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for param in backbone.parameters():
            if param.requires_grad:
                param += 0.3 * torch.randn(param.shape, generator=generator)
    return backbone.eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# -- freeze


def test_freeze_matches_whole_name_components():
    model = classifier(frozen=["patch_embeddings", "encoder.layer.1"]).backbone
    still = {name for name, param in model.named_parameters() if param.requires_grad}
    assert not any("patch_embeddings" in name or ".layer.1." in name for name in still)
    assert any(".layer.0." in name for name in still) and "vit_nepa.embeddings.cls_token" in still
    trained, every = trained_parameters(model)
    frozen = sum(p.numel() for n, p in model.named_parameters() if n not in still)
    assert every - trained == frozen > 0


def test_frozen_parameters_get_no_gradient_and_no_optimizer_group(pixels):
    model = classifier(frozen=["encoder.layer", "patch_embeddings"])
    model({"pixel_values": pixels, "labels": torch.tensor([0, 1, 2])}).loss_sum.backward()
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5, learning_rate=1.0))
    inside = {id(param) for group in groups for param in group["params"]}
    for name, param in model.named_parameters():
        assert (param.grad is not None) == (id(param) in inside) == param.requires_grad, name
    first_token = dict(model.named_parameters())["backbone.vit_nepa.embeddings.cls_token"]
    (group,) = [group for group in groups if any(param is first_token for param in group["params"])]
    assert (group["below_top"], group["lr"]) == (2, 0.25)  # frozen layers still count as depth


def test_mistyped_names_and_freezing_everything():
    model = classifier().backbone
    with pytest.raises(ConfigError, match=r"train.freeze: parameter 'patch_embedding' is not known. Did you mean"):
        freeze(model, ["patch_embedding"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(model, ["vit_nepa", "fc_norm", "classifier"])


def test_the_average_contains_only_trained_parameters():
    model = classifier(frozen=["encoder.layer.0"]).backbone
    ema = EmaWeights(0.9, model)
    assert set(ema.weights) == {name for name, param in model.named_parameters() if param.requires_grad}
    ema.weights["classifier.bias"] += 1
    before = {name: param.clone() for name, param in model.named_parameters()}
    with ema.applied(model):
        changed = [name for name, param in model.named_parameters() if not torch.equal(param, before[name])]
    assert changed == ["classifier.bias"]
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


# -- LoRA


def test_adapters_and_head_are_trained_and_start_at_the_plain_model(pixels):
    plain, model = classifier().backbone.eval(), classifier(LoraSettings(rank=2)).backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, plain(pixels).logits)
    names = {name for name, param in model.named_parameters() if param.requires_grad}
    assert {name for name in names if ".lora_" not in name} == {
        "fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}  # fmt: skip
    assert len([name for name in names if ".lora_" in name]) == 2 * 2 * 2  # layers, targets, A and B
    again, other = classifier(LoraSettings(rank=2)), classifier(LoraSettings(rank=2), seed=1)
    at = "vit_nepa.encoder.layer.0.attention.attention.query.lora_A.default.weight"
    first = model.state_dict()[at]
    assert torch.equal(first, again.backbone.state_dict()[at]) and not torch.equal(
        first, other.backbone.state_dict()[at]
    )


@pytest.mark.parametrize("targets", [["query", "value"], ["dense", "up_proj", "gate_proj"], ["attention.query", "key"]])
@pytest.mark.parametrize("training", [False, True])
def test_lora_bypasses_fused_paths_and_merging_is_equivalent(pixels, targets, training):
    lora = shaken(classifier(LoraSettings(rank=2, alpha=3, targets=targets)).backbone)
    plain = classifier().backbone
    plain.load_state_dict(merged(lora, lora.state_dict()))
    for model in (lora, plain):
        model.config.pos_embed_rescale = None
        model.train(training)
    torch.testing.assert_close(lora(pixels).logits, plain(pixels).logits, atol=2e-5, rtol=1e-4)
    lora(pixels).logits.sum().backward()
    assert all(param.grad.abs().sum() > 0 for name, param in lora.named_parameters() if ".lora_" in name)
    assert all(param.grad is None for name, param in lora.named_parameters() if ".base_layer." in name)


def test_merging_equals_peft():
    model = shaken(classifier(LoraSettings(rank=2, alpha=5, targets=["query", "output.dense"])).backbone)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plain = merged(model, state)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            torch.testing.assert_close(plain[name.replace(".base_layer.", ".")], value)


def test_a_plain_model_is_unchanged():
    model = classifier().backbone
    state = model.state_dict()
    assert not has_lora(model) and merged(model, state) is state


def test_the_adapter_folder_loads_with_peft(pixels, tmp_path):
    model = shaken(classifier(LoraSettings(rank=2, alpha=3)).backbone)
    write_adapter(model, model.state_dict(), tmp_path)
    torch.manual_seed(77)  # a different head
    base = NepaClassifier(architecture=NepaModel(**SIZES)).build(NAMES)
    base.vit_nepa.load_state_dict(classifier().backbone.vit_nepa.state_dict())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, model(pixels).logits)
    assert model.peft_config["default"].modules_to_save is None  # the settings in training are unchanged


def test_parts_that_are_fully_trained_beside_the_adapters(pixels, tmp_path):
    whole = "vit_nepa.embeddings"
    model = classifier(LoraSettings(rank=2, targets=["query", "dense"], whole=["embeddings"])).backbone
    for name, param in model.named_parameters():
        learns = ".lora_" in name or name.startswith(whole) or not name.startswith("vit_nepa.")
        assert param.requires_grad == learns, name
    state = shaken(model).state_dict()
    with torch.no_grad():
        model.vit_nepa.embeddings.cls_token += 1
    write_adapter(model, state, tmp_path)
    base = NepaClassifier(architecture=NepaModel(**SIZES)).build(NAMES)
    base.vit_nepa.load_state_dict(classifier().backbone.vit_nepa.state_dict())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, model(pixels).logits)
    with pytest.raises(ConfigError, match=r"^train.lora.whole: part 'embedings' is not known. Did you mean"):
        classifier(LoraSettings(whole=["embedings"]))


def test_pretraining_with_lora_trains_only_the_adapters():
    backbone = NepaModel(**SIZES).build()
    adapt(backbone, TrainConfig(max_steps=1, lora=LoraSettings(rank=2)))
    model = PretrainingModel(backbone, NextEmbeddingSettings(target="teacher").build(backbone))
    assert all(param.requires_grad == (".lora_" in name) for name, param in backbone.named_parameters())
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "latent_mask": torch.ones(2, 5, dtype=torch.bool)}
    model(batch).loss_sum.backward()
    ups = [param for name, param in backbone.named_parameters() if ".lora_B." in name]
    assert len(ups) == 4 and all(param.grad.abs().sum() > 0 for param in ups)
    model.after_step(1, 10)  # the teacher has the same adapters


def test_a_model_with_a_single_number_is_not_sharded():
    backbone = OmniParts(modalities={"text": {}}, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).build()
    model = PretrainingModel(backbone, NextEmbeddingSettings(distance="vocabulary").build(backbone))
    with pytest.raises(ConfigError, match=r"train\.fsdp: the model's log_scale is a single number"):
        shard(model)


def test_errors_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"^train.lora.targets: layer 'querry' is not known. Did you mean 'query'\?"):
        classifier(LoraSettings(targets=["querry"]))
    with pytest.raises(ConfigError, match="layer 'classifier' is not known"):  # the head is always trained
        classifier(LoraSettings(targets=["classifier"]))
    with pytest.raises(ConfigError, match="rank"):
        LoraSettings(rank=0)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"this needs peft: pip install 'nextembed\[finetune\]'"):
        classifier(LoraSettings())
