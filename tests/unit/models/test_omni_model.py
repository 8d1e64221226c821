"""The Omni model: parts, losses, gradients, saving and loading."""

import json

import pytest
import torch
import torch.nn.functional as F
from omni_tiny import BOUNDARY, WIDTH, omni, random_picture, series
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining

from nextembed.core.config import validated
from nextembed.core.objective import PretrainingModel
from nextembed.errors import ConfigError
from nextembed.modalities import MODALITIES, Modality
from nextembed.models.nepa import NepaModel
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniModel, OmniParts
from nextembed.models.omni.configuration_omni import BEGIN, FIRST
from nextembed.models.omni.modeling_omni import LENGTH_DECAY, START_LOG_SCALE
from nextembed.objectives import NextEmbeddingSettings

DOCUMENT = ["ab", {"touch": series()}, random_picture(), "c"]


TWO = (DOCUMENT, ["d", random_picture(1)])


def rows(model, documents=TWO, end=True):
    return dict(model.processor([list(one) for one in documents], end=end))


def trainer_of(model, **switches):
    return PretrainingModel(model, validated(NextEmbeddingSettings, switches).build(model))


# -- parts


def test_initialisation():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    model = OmniForPreTraining(OmniConfig(density="mixture", num_components=4, tell_next=True, **sizes))
    assert model.log_scale.item() == START_LOG_SCALE
    assert not model.model.next_place.weight.any()
    density = model.density_head(torch.randn(50, 64))
    assert density.log_weights.exp().sum(-1).allclose(torch.ones(50))
    uneven = density.log_weights.amax(-1) - density.log_weights.amin(-1)
    assert uneven.abs().max() < 1e-6  # all components have equal weight before training
    assert 0.01 < model.model.begin.weight.std() < 0.03
    assert model.config.names == ["text", "image"] and model.kind_names == ["begin", "text", "image"]


def test_begin_and_end_latents_are_rows_of_their_table():
    model = omni()
    batch = rows(model, [DOCUMENT])
    z = model.embed(batch).z[0]
    begin = model.model.begin.weight
    where = (batch["kinds"][0] == BEGIN).nonzero()[:, 0].tolist()
    assert where == [0, 3, 7, 12, 14]  # text of 2, touch of 3, image of 4, text of 1, the end
    for position, row in zip(where, [0, 2, 1, 0, 3], strict=True):
        assert torch.equal(z[position], begin[row])
    assert torch.equal(z[1], model.model.modality("text").table.weight[ord("a")])
    touch = model.processor.readers["touch"].patches(series()).values
    assert torch.allclose(z[4:7], model.model.modality("touch").projection(touch), atol=1e-6)
    assert [model.kind_names[kind - 1] for kind in batch["kinds"][0, [1, 4, 8]]] == ["text", "touch", "image"]


def test_hugging_face_forward_gives_the_cosine_loss():
    model = omni()
    batch = rows(model)
    out = model(**batch)
    objective = trainer_of(model).eval()(batch)
    assert out.loss.item() == pytest.approx((objective.loss_sum / objective.num_targets).item(), abs=1e-6)
    assert out.last_hidden_state.shape == out.latents.shape == (2, 15, WIDTH)
    bare = OmniModel(model.config).eval()
    bare.load_state_dict(model.model.state_dict())
    assert torch.equal(bare(**batch).last_hidden_state, out.last_hidden_state)


# -- NEPA


@pytest.fixture(scope="module")
def nepa(tmp_path_factory):
    torch.manual_seed(3)
    made = NepaModel(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4,
                     layerscale_value=1.0).build()  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    folder = tmp_path_factory.mktemp("nepa") / "model"
    made.save_pretrained(folder)
    return made.eval(), folder


def started(folder, **changes):
    image = {"image_size": 12, "patch_size": 4, **changes}
    return OmniParts(nepa=str(folder), modalities={"text": {}, "image": image}, rope_split=[0, 4, 4])


def test_omni_with_images_only_equals_nepa(nepa):
    theirs, folder = nepa
    parts = started(folder)
    ours, processor = parts.build().eval(), parts.processor()
    pictures = [random_picture(seed, 12) for seed in range(3)]
    pixels = torch.stack(pictures).float() / 127.5 - 1
    batch = processor([[one] for one in pictures])
    a, b = theirs(pixels), ours(**batch)
    assert torch.allclose(a.last_hidden_state, b.last_hidden_state, atol=1e-5)
    assert a.loss.item() == pytest.approx(b.loss.item(), abs=1e-6)
    a.loss.backward(), b.loss.backward()
    kernel = theirs.vit_nepa.embeddings.patch_embeddings.projection.weight.grad.flatten(1)
    assert kernel.abs().max() > 1e-3
    assert torch.allclose(kernel, ours.model.modality("image").projection.weight.grad, atol=1e-5)
    for p, q in zip(theirs.vit_nepa.encoder.parameters(), ours.model.encoder.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)
    begin = theirs.vit_nepa.embeddings.cls_token.grad[0, 0]
    assert torch.allclose(begin, ours.model.begin.weight.grad[1], atol=1e-5)


@pytest.mark.parametrize("normalised", [{}, {"mean": 0.5, "std": 0.6}], ids=["plain", "normalised"])
def test_images_do_not_depend_on_later_segments(nepa, normalised):
    theirs, folder = nepa
    parts = started(folder, **normalised)
    ours, processor = parts.build().eval(), parts.processor()
    picture = random_picture(5, 12)
    whole = ours(**processor([picture, "and words"], end=True)).last_hidden_state[:, :10]
    assert torch.allclose(theirs(picture[None].float() / 127.5 - 1).last_hidden_state, whole, atol=1e-5)


def test_patches_of_another_size_do_not_fit_a_nepa(nepa):
    with pytest.raises(ConfigError, match=r"have 48 values, those of the image modality 12"):
        started(nepa[1], patch_size=2).build()
    with pytest.raises(ConfigError, match="no image modality"):
        OmniParts(nepa=str(nepa[1]), modalities={"text": {}}, rope_split=[0, 4, 4]).build()


# -- losses


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_no_gradient_into_targets(distance):
    """The last latent of a document is only a target, so its values get no gradient."""
    model = omni()
    batch = rows(model, [["a", {"touch": series()}]], end=False)
    batch["values.touch"] = batch["values.touch"].clone().requires_grad_()
    trainer_of(model, distance=distance)(batch).loss_sum.backward()
    assert batch["values.touch"].grad[-1].abs().sum() == 0
    assert (batch["values.touch"].grad[:-1].abs().sum(-1) > 0).all()


def test_the_end_latent_is_only_ever_a_target():
    model = omni(train=True)
    trainer_of(model)(rows(model)).loss_sum.backward()
    grad = model.model.begin.weight.grad.abs().sum(-1)
    assert grad[-1] == 0 and (grad[:-1] > 0).all()


@pytest.mark.parametrize("distance", ["cosine", "vocabulary", "likelihood", "mse", "smooth_l1"])
@pytest.mark.parametrize("idle", ["", "image", "touch", "text"])
def test_gradients_reach_every_parameter(distance, idle):
    """Also parameters unused in a batch or by a distance, because ranks wait for each other's gradients."""
    density = "mixture" if distance == "likelihood" else "none"
    model = omni(train=True, tell_next=True, density=density, num_components=3, orders={"image": "random"})
    pieces = {"text": "abc", "image": random_picture(), "touch": series()}
    document = [{name: value} for name, value in pieces.items() if name != idle]
    batch = rows(model, [document])
    out = trainer_of(model, distance=distance)(batch)
    assert out.loss_sum.isfinite()
    out.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for name in pieces:
        for parameter in model.model.modality(name).parameters():
            as_output = name == "text" and distance == "vocabulary"  # its softmax uses the whole table
            assert bool(parameter.grad.any()) is (name != idle or as_output), name


def test_vocabulary_is_a_softmax_over_the_tables():
    model = omni()
    with torch.no_grad():
        model.log_scale.fill_(1.3)
    batch = rows(model)
    out = trainer_of(model, distance="vocabulary").eval()(batch)
    latents = model.embed(batch)
    hidden = model.encode(latents).last
    table = torch.cat((model.model.begin.weight, model.model.modality("text").table.weight))
    expected, count = 0.0, 0
    for row in range(2):
        for t in range(1, batch["kinds"].shape[1]):
            if not batch["latent_mask"][row, t]:
                continue
            kind, token = int(batch["kinds"][row, t]), int(batch["input_ids"][row, t])
            h, count = hidden[row, t - 1], count + 1
            if kind in (BEGIN, FIRST):  # begin latents, then bytes
                cosines = F.cosine_similarity(h[None], table, dim=-1)
                index = token if kind == BEGIN else 4 + token
                expected += -(cosines * torch.tensor(1.3).exp()).log_softmax(0)[index].item()
            else:
                expected += -F.cosine_similarity(h, latents.z[row, t], dim=0).item()
    assert out.loss_sum.item() == pytest.approx(expected, rel=1e-4)
    assert int(out.num_targets) == count == int(batch["latent_mask"].sum())


def test_stop_gradient_for_the_table_as_output():
    grads = {}
    for stop in (False, True):
        model = omni(train=True)
        batch = rows(model, [["ab"]])
        trainer_of(model, distance="vocabulary", stop_gradient_table=stop)(batch).loss_sum.backward()
        grads[stop] = model.model.modality("text").table.weight.grad.abs().sum(-1)
        assert model.log_scale.grad.abs() > 0
    assert (grads[False] > 0).all()  # the softmax gives every row a gradient
    assert set(grads[True].nonzero()[:, 0].tolist()) == {ord("a"), ord("b")}


@pytest.mark.parametrize("density", ["von_mises_fisher", "mixture"])
def test_likelihood_is_that_of_the_density_head(density):
    model = omni(density=density, num_components=3)
    batch = rows(model)
    out = trainer_of(model, distance="likelihood").eval()(batch)
    latents = model.embed(batch)
    predicted = model.density_head(model.encode(latents).last[:, :-1])
    assert predicted.kappas.shape[-1] == (3 if density == "mixture" else 1)
    log_prob = predicted.log_prob(latents.z[:, 1:])
    expected = -(log_prob * batch["latent_mask"][:, 1:]).sum()
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("distance", ["cosine", "vocabulary"])
def test_losses_are_weighted_by_modality(distance):
    """The weighted loss is the weighted sum of the losses of each kind; num_targets is not weighted."""
    model = omni()
    batch = rows(model)
    weights = {"text": 2.0, "image": 0.5, "begin": 0.0}  # touch: 1
    whole = trainer_of(model, distance=distance, weights=weights).eval()(batch)
    assert whole.num_targets == batch["latent_mask"].sum()
    expected = 0.0
    for name, weight in {**weights, "touch": 1.0}.items():
        own = batch["latent_mask"] & (batch["kinds"] == 1 + model.kind_names.index(name))
        expected += weight * trainer_of(model, distance=distance).eval()({**batch, "latent_mask": own}).loss_sum.item()
    assert whole.loss_sum.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distance", ["cosine", "vocabulary", "likelihood"])
def test_a_batch_loss_is_the_sum_over_its_documents(distance):
    model = omni(density="mixture" if distance == "likelihood" else "none", num_components=2)
    documents = [DOCUMENT, ["d", random_picture(1)], [{"touch": series(4)}]]
    net = trainer_of(model, distance=distance).eval()
    together = net(rows(model, documents))
    alone = [net(rows(model, [one])) for one in documents]
    assert together.loss_sum.item() == pytest.approx(sum(one.loss_sum.item() for one in alone), rel=1e-4)
    assert together.num_targets == sum(one.num_targets for one in alone)


def test_metrics_are_by_modality():
    model = omni()
    batch = rows(model)
    found = trainer_of(model, distance="vocabulary").eval()(batch).metrics
    latents = model.embed(batch)
    cosines = F.cosine_similarity(model.encode(latents).last[:, :-1], latents.z[:, 1:], dim=-1)
    for kind, name in enumerate(model.kind_names, 1):
        own = batch["latent_mask"][:, 1:] & (batch["kinds"][:, 1:] == kind)
        total, count = found[f"cos_next/{name}"]
        assert count == own.sum() and total.item() == pytest.approx(cosines[own].sum().item(), rel=1e-4)
    assert {"top1/begin", "top1/text"} <= set(found) and "top1/image" not in found


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"distance": "likelihood"}, "needs model.density"),
        ({"weights": {"txt": 2}}, "objective.weights: 'txt' is not known. Did you mean 'text'"),
        ({"distance": "info_nce"}, "packed documents"),
        ({"steps_ahead": 2}, "packed documents"),
        ({"shift": False}, "packed documents"),
        ({"target": "teacher"}, "packed documents"),
        ({"input_mask_rate": 0.5}, "packed documents"),
    ],
)
def test_incompatible_objectives(switches, message):
    with pytest.raises(ConfigError, match=message):
        trainer_of(omni(), **switches)


def test_a_density_requires_the_likelihood():
    with pytest.raises(ConfigError, match=r"objective\.distance=likelihood"):
        trainer_of(omni(density="mixture"), distance="cosine")


@pytest.mark.parametrize("switches", [{"distance": "vocabulary"}, {"weights": {"image": 2}}])
def test_settings_that_need_omni(switches):
    backbone = NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build()
    with pytest.raises(ConfigError, match=r"model\.kind=omni"):
        validated(NextEmbeddingSettings, switches).build(backbone)


# -- readout


def test_lengths_are_measured_only_in_training():
    model = omni()
    batch = rows(model)
    before = model.model.lengths.clone()
    model.embed(batch)
    assert torch.equal(model.model.lengths, before)
    model.train()
    for _ in range(3):
        for _ in range(2):  # micro-batches: lengths are updated once per step
            latents = model.embed(batch)
        model.after_step()
    for kind in (BEGIN, FIRST, FIRST + 1, FIRST + 2):
        mean = latents.z[batch["kinds"] == kind].norm(dim=-1).mean().item()
        expected = mean + (before[kind].item() - mean) * LENGTH_DECAY**3
        assert model.model.lengths[kind].item() == pytest.approx(expected, rel=1e-4)
    assert model.model.lengths[0] == before[0]  # padding is not measured


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_values_are_recovered_from_directions(monkeypatch, bias):
    """With fewer values than latent dimensions, mean length and almost no expected error, the readout is exact."""
    monkeypatch.setattr("nextembed.models.omni.modeling_omni.READOUT_NOISE", 1e-3)
    model = omni()
    touch = model.model.modality("touch")
    nn.init.normal_(touch.projection.bias, std=bias)
    values = torch.randn(5, 4)
    for row, latent in zip(values, touch.embed(values), strict=True):
        model.model.lengths[FIRST + 2] = latent.detach().norm()
        found = model.values_of("touch", 7.0 * latent[None])  # the length does not matter
        assert torch.allclose(found[0], row, rtol=1e-2, atol=1e-2)


def test_the_bias_determines_the_length_of_a_latent():
    """Weak signals have latents near the bias; strong signals have much longer ones."""
    model = omni()
    touch = model.model.modality("touch")
    nn.init.normal_(touch.projection.weight)
    nn.init.normal_(touch.projection.bias)
    values = torch.randn(6, 4) * torch.tensor([0.0, 0.01, 0.1, 0.5, 1.0, 2.0])[:, None]
    z = touch.embed(values)
    model.model.lengths[FIRST + 2] = z.detach().norm(dim=-1).mean()
    found = model.values_of("touch", F.normalize(z, dim=-1))
    assert torch.allclose(found, values, rtol=0.1, atol=0.05)


def test_expected_error_keeps_values_small():
    """In a direction with tiny projection weights, noise in a latent does not cause large values."""
    model = omni()
    touch = model.model.modality("touch").projection
    with torch.no_grad():
        touch.weight.zero_()
        touch.weight[0, 0], touch.weight[1, 1] = 1.0, 1e-3
        touch.bias.zero_()
    model.model.lengths[FIRST + 2] = 1.0
    direction = F.normalize(torch.tensor([[1.0, 0.1] + [0.0] * (WIDTH - 2)]), dim=-1)
    found = model.values_of("touch", direction)[0]
    assert 0.9 < found[0] < 1.0 and found[1].abs() < 0.1  # plain least squares would give 100


def test_a_trained_readout_is_preferred():
    model = omni()
    model.readouts["touch"] = nn.Linear(WIDTH, 4)
    direction = torch.randn(3, WIDTH)
    assert torch.equal(model.values_of("touch", direction), model.readouts["touch"](F.normalize(direction, dim=-1)))


def test_modalities_without_a_readout(monkeypatch):
    class Deep(Modality):
        value_size = 3

        def __init__(self, hidden_size):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, hidden_size))

        def embed(self, values):
            return self.net(values)

    monkeypatch.setitem(MODALITIES.classes, "deep", Deep)
    model = omni({"deep": {}, "text": {}})
    with pytest.raises(ConfigError, match="'text' is read out by its table"):
        model.values_of("text", torch.randn(1, WIDTH))
    with pytest.raises(ConfigError, match=r"'deep' has no linear projection.*readout"):
        model.values_of("deep", torch.randn(1, WIDTH))


# -- saving and loading


@pytest.mark.parametrize("density", ["none", "von_mises_fisher", "mixture"])
def test_round_trip(tmp_path, density):
    model = omni(density=density, num_components=3, tell_next=True, orders={"image": "hilbert"})
    with torch.no_grad():
        model.log_scale.fill_(2.5)
        model.model.lengths.copy_(torch.arange(5.0) + 1)
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert isinstance(again, OmniForPreTraining)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert {"log_scale", "model.lengths", "model.next_place.weight"} <= ours.keys()
    batch = rows(model)
    assert torch.equal(model(**batch).last_hidden_state, again.eval()(**batch).last_hidden_state)
    assert again.processor.orders == {"image": "hilbert"} and again.processor.names == model.processor.names
    trunk, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(trunk, OmniModel) and not info["missing_keys"]
    assert torch.equal(trunk.eval()(**batch).last_hidden_state, model(**batch).last_hidden_state)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["modalities"] == BOUNDARY and list(saved["modalities"]) != list(BOUNDARY) == saved["modality_names"]


def test_a_model_without_a_folder_requires_a_processor():
    model = OmniForPreTraining(omni().config)
    with pytest.raises(ConfigError, match=r"set model\.processor"):
        model.generate(["a"], "text")


# -- errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": "gauss"}, "density is none, von_mises_fisher, mixture, flow or energy, not 'gauss'"),
        ({"modalities": {"my touch": {}}}, "'my touch' is not a valid name for a modality"),
        ({"num_attention_heads": 3}, "hidden_size 32 over 3 heads"),
        ({"rope_split": [1, 2, 3]}, "three numbers that sum to 8"),
    ],
)
def test_invalid_configurations(fields, message):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match=message):
        OmniConfig(**(sizes | fields))


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"image": {"image_sise": 32}}, "modalities.image: 'image_sise' is not known. Did you mean 'image_size'"),
        ({"image": {"image_size": 30, "patch_size": 4}}, "modalities.image: patch_size 4 does not divide"),
        ({"img": {}}, "kind 'img' is not known.*--code"),
        ({"text": {"vocabulary": 1}}, "modalities.text: vocabulary is 'bytes' or"),
        ({"touch": {"kind": "series", "channels": 0}}, "modalities.touch: channels 0"),
        ({"touch": {"kind": "series", "channels": 2, "scale": [1, 2, 3]}}, "modalities.touch: scale has 3 numbers"),
        ({"touch": {"kind": "series", "scale": 0}}, "modalities.touch: scale"),
        ({"touch": {"kind": "nowhere.py:Touch"}}, "no such file: nowhere.py"),
        ({"image": 32}, r"modalities\.image"),
        ({}, "one modality at least"),
    ],
)
def test_invalid_modalities(modalities, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validated(OmniParts, {"modalities": modalities, "hidden_size": 32, "num_attention_heads": 2}).build()
    assert "\n" not in str(caught.value)


def test_a_modality_that_is_not_registered(tmp_path):
    MODALITIES.register("foreign")(type("Foreign", (MODALITIES.classes["series"],), {}))
    model = omni({"foreign": {}})
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    del MODALITIES.classes["foreign"]
    with pytest.raises(ConfigError, match=r"'foreign' is not known.*import its file first"):
        AutoModelForPreTraining.from_pretrained(tmp_path)
