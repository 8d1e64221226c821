"""Emu as a Hugging Face model: interchangeable parts, saving, generation, packing, gradients, errors."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    CLIPVisionConfig,
    DINOv3ViTConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.blip_2 import Blip2VisionConfig

from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration, EmuModel, grow_vocabulary
from nextembed.models.emu.connectors import standardise
from nextembed.models.nepa import ViTNepaConfig

VOCABULARY, START, END, IMAGE, PAD = 60, 51, 52, 53, 50
SIDES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16)
FORMER = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2, "dropout_rate": 0.0}
TEXT = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)  # fmt: skip
VISIONS = {
    "eva": Blip2VisionConfig(patch_size=8, layer_norm_eps=1e-6, initializer_range=0.1, **SIDES),
    "nepa": ViTNepaConfig(patch_size=8, **SIDES),
    "siglip": SiglipVisionConfig(patch_size=8, **SIDES),
    "clip": CLIPVisionConfig(patch_size=8, **SIDES),
    "dinov3": DINOv3ViTConfig(patch_size=8, num_register_tokens=2, **SIDES),
}
LANGUAGES = {
    "llama": LlamaConfig(**TEXT),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
                       eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "qwen3": Qwen3Config(num_key_value_heads=2, head_dim=8, **TEXT),
    "gemma3": Gemma3TextConfig(num_key_value_heads=2, head_dim=8, sliding_window=8, **TEXT),
    "opt": OPTConfig(vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, ffn_dim=48,
                     num_attention_heads=4, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=1,
                     eos_token_id=2, dropout=0.0),
    "tied": LlamaConfig(tie_word_embeddings=True, **TEXT),
}  # fmt: skip


def config(vision="eva", language="llama", **changes):
    settings = {"vision_config": VISIONS[vision].to_dict(), "text_config": LANGUAGES[language].to_dict(),
                "causal_former_config": FORMER, "num_image_latents": 3, "image_token_id": IMAGE, "pad_token_id": PAD,
                "image_start_token_id": START, "image_end_token_id": END, **changes}  # fmt: skip
    return EmuConfig(**settings)


def build(vision="eva", language="llama", **changes):
    torch.manual_seed(0)
    return EmuForConditionalGeneration(config(vision, language, **changes)).eval()


def image(num=3):
    return [START, *[IMAGE] * num, END]


def batch(num_latents=3):
    """Two left-padded rows with different numbers of images."""
    rows = [[1, 5, *image(num_latents), 6, *image(num_latents), 7, 8], [1, 9, *image(num_latents), 10, 11, 2]]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
    }


def labels_of(ids):
    return ids.masked_fill(torch.isin(ids, torch.tensor([PAD, START, IMAGE, END])), -100)


# -- parts


@pytest.mark.parametrize(("vision", "language"), [*((v, "llama") for v in VISIONS), *(("eva", t) for t in LANGUAGES)])
def test_any_parts_train_generate_and_round_trip(vision, language, tmp_path):
    model, inputs = build(vision, language), batch()
    out = model(**inputs, labels=labels_of(inputs["input_ids"]))
    assert out.image_latents.shape == (3, 3, 32) and out.logits.shape == (*inputs["input_ids"].shape, VOCABULARY)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.regression_head.parameters())
    assert model.model.connector.causal_tokens.grad.abs().sum() > 0
    assert next(model.model.visual.parameters()).grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    again, info = EmuForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)
    ids = again.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert ids.shape[0] == 2 and 1 <= ids.shape[1] <= 4
    assert again.generate_image_embeddings(**inputs, guidance=True).shape == (4, 3, 32)


@torch.no_grad()
@pytest.mark.parametrize("language", LANGUAGES)
def test_logits_are_the_language_model_s_own(language):
    """Including heads with logit caps, scales or projections."""
    model = build(language=language)
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    assert torch.allclose(model(ids).logits, model.model.language_model(ids).logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("language", LANGUAGES)
def test_image_embeddings_equal_generation_without_a_cache(language):
    model, inputs = build(language=language), batch()
    found = model.generate_image_embeddings(**inputs)
    for row in range(2):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        pixels = inputs["pixel_values"][:2] if row == 0 else inputs["pixel_values"][2:]
        embeds = model.model.embed(torch.cat([ids, torch.tensor([[START]])], 1), model.image_latents(pixels))
        for number in range(3):
            hidden = model.model(inputs_embeds=embeds).last_hidden_state[:, -1:]
            embeds = torch.cat([embeds, model.regression_head(hidden)], 1)
            assert torch.allclose(found[row, number], embeds[0, -1], atol=1e-5)


@torch.no_grad()
def test_connectors():
    images = torch.randn(2, 3, 16, 16)
    pooled = build("siglip", connector="pooled_grid", num_image_latents=4)
    assert pooled.image_latents(images).shape == (2, 4, 32)
    features = pooled.model.visual_features(images)  # the grid is already 2 x 2: no pooling
    assert torch.allclose(pooled.image_latents(images), pooled.model.connector.projection(features), atol=1e-6)
    one = build("dinov3", connector="pooled_grid", num_image_latents=1)
    patches = one.model.visual_features(images)[:, -4:]  # class and register tokens are left out
    assert torch.allclose(one.image_latents(images)[:, 0], one.model.connector.projection(patches.mean(1)), atol=1e-6)
    same = build("eva", connector="identity", num_image_latents=5)
    assert same.image_latents(images).shape == (2, 5, 32)
    out = same(**batch(5))
    assert out.logits.isfinite().all()
    with pytest.raises(ValueError, match="gives 5 tokens, num_image_latents says 4"):
        build("eva", connector="identity", num_image_latents=4).image_latents(images)
    with pytest.raises(ValueError, match="cannot make 9 latents of 4 patches"):
        build("eva", connector="pooled_grid", num_image_latents=9)


@torch.no_grad()
def test_latents_are_causal():
    """Latent j depends only on queries 1..j."""
    model, images = build(), torch.randn(1, 3, 16, 16)
    before = model.image_latents(images)
    model.model.connector.causal_tokens[:, 2] += 1
    after = model.image_latents(images)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.allclose(before[:, 2], after[:, 2])


def test_an_inner_layer_of_the_encoder_can_be_used():
    model, images = build("clip", vision_layer=1), torch.randn(1, 3, 16, 16)
    hidden = model.model.visual(images, output_hidden_states=True).hidden_states[1]
    assert torch.equal(model.model.visual_features(images), model.model.visual_norm(hidden))


def test_cross_attention_starts_at_the_width_of_the_encoder():
    settings = SIDES | {"hidden_size": 512}
    torch.manual_seed(0)
    vision = Blip2VisionConfig(patch_size=8, **settings).to_dict()
    former = {**FORMER, "d_model": 128, "d_kv": 64, "num_heads": 4}
    model = EmuForConditionalGeneration(config(vision_config=vision, causal_former_config=former))
    for block in model.model.connector.stack.block:
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        assert cross.k.weight.shape == (256, 512)
        assert abs(cross.k.weight.std() / 512**-0.5 - 1) < 0.05 and abs(cross.v.weight.std() / 512**-0.5 - 1) < 0.05
        assert abs(own.k.weight.std() / 128**-0.5 - 1) < 0.05
        assert abs(own.q.weight.std() / (128 * 64) ** -0.5 - 1) < 0.05
    assert abs(model.model.connector.causal_tokens.std() / 0.02 - 1) < 0.2


# -- saving


def test_auto_classes(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EmuConfig
    for kind in (AutoModelForImageTextToText, AutoModelForPreTraining):
        assert type(kind.from_pretrained(tmp_path)) is EmuForConditionalGeneration
    inner = AutoModel.from_pretrained(tmp_path)
    assert type(inner) is EmuModel
    for name, value in model.model.state_dict().items():
        assert torch.equal(inner.state_dict()[name], value), name
    inner.save_pretrained(tmp_path / "inner")
    again = AutoModel.from_pretrained(tmp_path / "inner")
    for name, value in model.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_configuration_round_trip(tmp_path):
    for vision in VISIONS:
        for language in LANGUAGES:
            one = config(vision, language)
            one.save_pretrained(tmp_path)
            again = AutoConfig.from_pretrained(tmp_path).to_dict()
            differ = {name for name, value in one.to_dict().items() if again.get(name) != value}
            assert differ <= {"_name_or_path"}
            assert AutoConfig.from_pretrained(tmp_path).tie_word_embeddings == one.text_config.tie_word_embeddings


def test_tied_embeddings_stay_tied(tmp_path):
    model = build(language="tied")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = EmuForConditionalGeneration.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    grow_vocabulary(again.model.language_model, VOCABULARY + 3)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    table = again.get_input_embeddings().weight
    assert torch.allclose(table[-3:], table[:VOCABULARY].mean(0).expand(3, -1))


def test_missing_and_surplus_weights_are_reported(tmp_path):
    from safetensors.torch import load_file, save_file

    build().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("regression_head.weight")
    save_file(state | {"other.weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = EmuForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"regression_head.weight"} and set(info["unexpected_keys"]) == {"other.weight"}


@torch.no_grad()
def test_bf16():
    model, inputs = build().bfloat16(), batch()
    out = model(**inputs, labels=labels_of(inputs["input_ids"]))
    assert out.logits.dtype == torch.bfloat16 and out.loss.isfinite()
    whole = build()(**inputs).logits
    mask = inputs["attention_mask"].bool()
    assert (out.logits.float() - whole)[mask].abs().max() < 0.05
    assert model.generate_image_embeddings(**inputs).dtype == torch.bfloat16
    assert model.generate(**inputs, max_new_tokens=2, pad_token_id=PAD).shape[0] == 2


# -- generation


@torch.no_grad()
@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_do_not_depend_on_their_batch(language):
    """With different numbers of images, for greedy and beam search."""
    model, inputs = build(language=language), batch()
    for beams in (1, 3):
        settings = dict(max_new_tokens=6, num_beams=beams, do_sample=False, pad_token_id=PAD, min_new_tokens=6)
        together = model.generate(**inputs, **settings)
        for row in range(2):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
            pixels = inputs["pixel_values"][:2] if row == 0 else inputs["pixel_values"][2:]
            alone = model.generate(ids, pixels, torch.ones_like(ids), **settings)
            assert torch.equal(alone[0], together[row])


@torch.no_grad()
def test_greedy_search_equals_generation_without_a_cache():
    model, inputs = build(), batch()
    ids, pixels = inputs["input_ids"][1:][:, inputs["attention_mask"][1].bool()], inputs["pixel_values"][2:]
    wanted = ids
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted, pixels).logits[:, -1:].argmax(-1)], 1)
    found = model.generate(ids, pixels, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(found, wanted[:, ids.shape[1] :])


def test_sampling_follows_the_seed():
    model, inputs = build(), batch()
    settings = dict(do_sample=True, max_new_tokens=8, min_new_tokens=8, pad_token_id=PAD, num_return_sequences=2)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model.generate(**inputs, **settings))
    assert found[0].shape == (4, 8)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# -- attention, packing, memory


@torch.no_grad()
@pytest.mark.parametrize("other", ["eager", "flex_attention"])
def test_attention_implementations_agree(other):
    model, inputs = build(), batch()
    mask = inputs["attention_mask"].bool()
    before = model(**inputs).logits
    model.model.language_model.set_attn_implementation(other)
    assert model.model.language_model.config._attn_implementation == other
    assert torch.allclose(model(**inputs).logits[mask], before[mask], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_packed_documents_are_independent(language, kind):
    model = build(language=language)
    model.model.language_model.set_attn_implementation(kind)
    documents = [[1, 5, *image(), 6], [1, 9, 10, 2], [1, *image(), *image(), 7, 2]]
    pixels = torch.randn(3, 3, 16, 16)
    rows = [documents[0] + documents[1] + documents[2], documents[1] + [PAD] * 22]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    places = torch.zeros_like(ids)
    start = 0
    for number, document in enumerate(documents, 1):
        places[0, start : start + len(document)] = number
        start += len(document)
    places[1, :4] = 1
    found = model(ids, pixels, document_ids=places).logits
    used = 0
    for number, document in enumerate(documents, 1):
        num = document.count(START)
        alone = model(torch.tensor([document]), pixels[used : used + num]).logits[0]
        used += num
        assert torch.allclose(found[0][places[0] == number], alone, atol=1e-5)
    assert torch.allclose(found[1, :4], model(torch.tensor([documents[1]])).logits[0], atol=1e-5)
    assert found.isfinite().all()


def gradients(model, inputs):
    model.zero_grad()
    torch.manual_seed(0)  # for random parts in training (drop path, DINOv3's rescaled positions)
    model(**inputs, labels=labels_of(inputs["input_ids"])).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("vision", VISIONS)
def test_gradient_checkpointing_gives_the_same_gradients(vision):
    model, inputs = build(vision).train(), batch()
    before = gradients(model, inputs)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    flags = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(flags) >= 3  # encoder, causal former, language model
    after = gradients(model, inputs)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


# -- gradients


def test_every_parameter_gets_a_gradient():
    model, inputs = build(), batch()
    found = gradients(model, inputs)
    assert found.keys() == dict(model.named_parameters()).keys()
    still = [name for name, grad in found.items() if not grad.abs().sum() > 0]
    assert still == []


def test_each_head_gets_gradients_only_from_its_loss():
    model, inputs = build(), batch()
    out = model(**inputs, labels=labels_of(inputs["input_ids"]))
    out.text_loss.backward(retain_graph=True)
    assert model.regression_head.weight.grad is None and model.get_output_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()
    out.regression_loss.backward()
    assert model.get_output_embeddings().weight.grad is None and model.regression_head.weight.grad.abs().sum() > 0
    assert model.model.connector.causal_tokens.grad.abs().sum() > 0  # through the input of the language model
    assert not out.regression_target.requires_grad


def test_frozen_parts_get_no_gradients():
    inputs = batch()
    for part in ("visual", "connector", "language_model"):
        model = build()
        getattr(model.model, part).requires_grad_(False)
        found = gradients(model, inputs)
        assert not any(name.startswith(f"model.{part}.") for name in found)
        assert all(any(name.startswith(f"model.{other}.") for name in found)
                   for other in {"visual", "connector", "language_model"} - {part})  # fmt: skip


# -- errors


def test_numbers_of_images_that_do_not_match():
    model, inputs = build(), batch()
    with pytest.raises(ValueError, match="2 images give 6 latents, but the text has 9 <image> positions"):
        model(inputs["input_ids"], inputs["pixel_values"][:2])
    with pytest.raises(ValueError, match="0 images give 0 latents, but the text has 9"):
        model(inputs["input_ids"])
    with pytest.raises(ValueError, match="1 images give 3 latents, but the text has 0"):
        model.generate(torch.tensor([[1, 5]]), inputs["pixel_values"][:1])


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_longer_than_the_context(language):
    model, long = build(language=language), torch.full((1, 65), 5)
    with pytest.raises(ValueError, match="65 tokens, but the language model reads 64"):
        model(long)
    with pytest.raises(ValueError, match="60 tokens and 10 new ones make 70, but the language model reads 64"):
        model.generate(long[:, :60], max_new_tokens=10)
    with pytest.raises(ValueError, match="63 tokens and 3 new ones make 66"):
        model.generate_image_embeddings(long[:, :63])
    model(long[:, :64])
    model.generate(long[:, :60], max_new_tokens=4)
    model.generate_image_embeddings(long[:, :60])


def test_invalid_prompts():
    model, inputs = build(), batch()
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(torch.tensor([[1, 5, PAD]]), attention_mask=torch.tensor([[1, 1, 0]]))
    with pytest.raises(ValueError, match="empty prompt"):
        model.generate(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model.generate()
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="images are \\[I, 3, 16, 16\\], not \\[3, 1, 16, 16\\]"):
        model(inputs["input_ids"], inputs["pixel_values"][:, :1])
    with pytest.raises(ValueError, match="images are \\[I, 3, 16, 16\\], not \\[3, 3, 8, 8\\]"):
        model(inputs["input_ids"], inputs["pixel_values"][:, :, :8, :8])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"connector": "mlp"}, "connector is one of"),
        ({"regression_distance": "l1"}, "regression_distance is one of"),
        ({"num_image_latents": 0}, "at least 1"),
        ({"connector": "pooled_grid", "num_image_latents": 5}, "square number"),
        ({"image_token_id": 60}, "image_token_id 60 is not in the vocabulary of 60"),
    ],
)
def test_invalid_configurations(settings, words):
    with pytest.raises(ValueError, match=words):
        build(**settings)


@pytest.mark.parametrize("connector", ["causal_former", "pooled_grid", "identity"])
def test_every_connector_can_be_standardised(connector):
    """Every connector exposes the features before its projection."""
    model = build("siglip", connector=connector, num_image_latents=4).eval()
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.model.visual_features(images)
        standardise(model.model.connector, features, 0.5)
        latents = model.image_latents(images)
    spread = (latents - latents.mean(0, keepdim=True)).square().mean((0, 1)).sqrt()
    torch.testing.assert_close(spread, torch.full_like(spread, 0.5), rtol=1e-3, atol=1e-3)
    assert latents.mean((0, 1)).abs().max() < 1e-4
