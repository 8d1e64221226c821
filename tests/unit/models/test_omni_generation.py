"""Omni: generation equals re-encoding the whole sequence at each step; scores are sums of log-likelihoods."""

import pytest
import torch
import torch.nn.functional as F
from omni_tiny import BOUNDARY, omni, random_picture, series

from nextembed.core.types import Latents
from nextembed.errors import ConfigError
from nextembed.models.omni.configuration_omni import FIRST
from nextembed.models.omni.generation import STOP_COSINE, Sampler
from nextembed.models.omni.processing_omni import pad_left
from nextembed.nn.orders import order_of
from nextembed.nn.readout import to_image

CONTEXTS = [["ab", random_picture()], ["something longer", {"touch": series()}], ["c"]]
DENSITIES = ["none", "von_mises_fisher", "mixture"]


class Recomputed:
    """A document continued without a cache: everything is re-encoded at each step."""

    def __init__(self, model, pieces):
        self.model = model
        latents = model.embed(model.processor([list(pieces)]))
        self.z, self.places = list(latents.z[0]), list(latents.coordinates[0])
        self.time = max(float(place[0]) for place in self.places)

    def add(self, z, height_width=(0.0, 0.0), new_time=True):
        self.time += new_time
        self.z.append(z)
        self.places.append(torch.tensor([self.time, *height_width]))

    def hidden(self):
        z = torch.stack(self.z)[None]
        return self.model.encode(Latents(z, torch.stack(self.places)[None], torch.ones(1, len(self.z)))).last[0, -1]

    def scores(self, hidden, table):
        if self.model.density_head is not None:
            return self.model.density_head(hidden.expand(len(table), -1)).log_prob(table)
        return F.cosine_similarity(hidden[None], table, dim=-1) * self.model.log_scale.exp()


def written(model, pieces, num, temperature=0.0, seed=0):
    """The bytes, generated latent by latent, and whether the model ended the text."""
    text, own = model.model.modality("text"), Recomputed(model, pieces)
    table = torch.cat((model.model.begin.weight, text.table.weight))
    generator = torch.Generator().manual_seed(seed)
    own.add(model.model.begin.weight[0])
    ids = []
    for _ in range(num):
        scores = own.scores(own.hidden(), table)
        code = int(scores.argmax() if temperature == 0 else
                   torch.multinomial((scores / temperature).softmax(0), 1, generator=generator))  # fmt: skip
        if code < 4:
            return ids, True
        ids.append(code - 4)
        own.add(table[code])
    return ids, False


@pytest.mark.parametrize("density", DENSITIES)
@torch.no_grad()
def test_text_equals_recomputation(density):
    model = omni(density=density, num_components=3)
    for temperature, seed in ((0.0, 0), (1.0, 3)):
        options = {"max_latents": 7, "temperature": temperature, "seed": seed}
        for pieces in CONTEXTS[:2]:
            made = model.generate(pieces, "text", **options)
            ids, ended = written(model, pieces, 7, temperature, seed)
            assert (made.values.tolist(), made.ended) == (ids, ended)
            assert made.kind == "text" and made.value == bytes(ids).decode(errors="replace")
            assert torch.equal(made.latents, model.model.modality("text").table.weight[made.values])


@torch.no_grad()
def test_a_batch_equals_single_documents():
    """Documents of different lengths are padded on the left."""
    model = omni(orders={"image": "random"}, tell_next=True)
    for target in ("text", "image", "touch"):
        together = model.generate(CONTEXTS, target, max_latents=9, seed=4)
        for pieces, made in zip(CONTEXTS, together, strict=True):
            alone = model.generate(pieces, target, max_latents=9, seed=4)
            num = len(alone.values)  # series in a batch end together
            assert made.kind == target and len(made.values) >= num
            assert torch.allclose(made.values[:num].float(), alone.values.float(), atol=2e-3)


def read_again(model, pieces, made, order, seed):
    """The prediction for each latent of `made` from one pass over the whole document, in natural order."""
    value = to_image(made.values[None], (2, 2), (4, 4))[0] if made.kind == "image" else made.value
    segments = model.processor.document(pieces)["segments"] + [{"kind": made.kind, "value": value, "order": order}]
    # A segment's generator is seeded with the document's seed plus its number; that of `generate` with `seed`.
    encoded = model.processor.encode_document({"segments": segments, "seed": seed - len(pieces)}, end=False)
    batch = pad_left([encoded])
    latents = model.embed(batch)
    own = slice(-len(made.values), None)
    found = model.values_of(made.kind, model.encode(latents).last[0, :-1][own])
    permutation = order_of(order, model.processor.readers[made.kind].patches(value).coordinates,
                           torch.Generator().manual_seed(seed))  # fmt: skip
    back = permutation.argsort()
    assert torch.allclose(latents.z[0][own][back], made.latents, atol=1e-4)
    return found[back]


@pytest.mark.parametrize("order", ["raster", "random", "hilbert", "coarse_to_fine"])
@pytest.mark.parametrize("tell_next", [True, False])
@torch.no_grad()
def test_an_image_equals_one_pass_over_the_whole(order, tell_next):
    model = omni(orders={"image": order}, tell_next=tell_next)
    seen = {"kind": "image", "value": random_picture(), "order": "raster"}
    for pieces, seed in ((["ab"], 7), (["ab", seen], 8)):
        made = model.generate(pieces, "image", seed=seed)
        assert made.value.shape == (3, 8, 8) and made.value.dtype == torch.uint8 and made.ended
        assert torch.allclose(read_again(model, pieces, made, order, seed), made.values, atol=2e-3)


@pytest.mark.parametrize("density", DENSITIES)
@torch.no_grad()
def test_a_series_equals_recomputation(density):
    """A series without a fixed length ends when a prediction is close to a begin or end latent."""
    model = omni(density=density, num_components=3)
    touch, begin = model.model.modality("touch"), F.normalize(model.model.begin.weight, dim=-1)
    for pieces, temperature in zip(CONTEXTS, (0.0, 0.5, 1.0)):
        made = model.generate(pieces, "touch", max_latents=6, temperature=temperature, seed=2)
        own, values = Recomputed(model, pieces), []
        generator = torch.Generator().manual_seed(2)
        own.add(model.model.begin.weight[2])
        while len(values) < 6:
            direction = F.normalize(own.hidden(), dim=0)
            if density != "none":
                predicted = model.density_head(own.hidden()[None])
                drawn = predicted.component(generator, temperature) if temperature else predicted.mode()
                direction = drawn[0]
            if values and (begin @ direction).max() > STOP_COSINE:
                break
            values.append(model.values_of("touch", direction[None])[0])
            own.add(touch.embed(values[-1]))
        assert torch.allclose(torch.stack(values), made.values, atol=5e-3)
        assert made.value.shape == (2, 2 * len(values))
        if density == "none":
            assert torch.allclose(read_again(model, pieces, made, "raster", 0), made.values, atol=5e-3)


@torch.no_grad()
def test_the_model_ends_its_output():
    """The end latent is never an input here, so it can be set to the predicted direction."""
    for target, number, fewest in (("text", 0, 0), ("touch", 2, 1)):
        model = omni()
        whole = model.generate(["ab"], target, max_latents=5)
        assert not whole.ended and len(whole.values) == 5
        own = Recomputed(model, ["ab"])
        own.add(model.model.begin.weight[number])
        for z in whole.latents[:fewest]:  # a series has at least one latent
            own.add(z)
        model.model.begin.weight[-1] = own.hidden()
        made = model.generate(["ab"], target, max_latents=5)
        assert made.ended and len(made.values) == fewest
        assert torch.allclose(made.values.float(), whole.values[:fewest].float(), atol=1e-5)


@torch.no_grad()
def test_the_model_chooses_the_next_modality():
    model = omni()
    hidden = Recomputed(model, ["ab"]).hidden()
    chosen = F.cosine_similarity(hidden[None], model.model.begin.weight, dim=-1)[:3].argmax()
    model.model.begin.weight[-1] = -hidden
    assert model.generate(["ab"], max_latents=2).kind == model.config.names[int(chosen)]
    model.model.begin.weight[2] = 5 * hidden
    assert model.generate(["ab"], max_latents=2).kind == "touch"
    model.model.begin.weight[-1] = hidden
    model.model.begin.weight[2] = -hidden
    assert model.generate(["ab"]) is None  # the document ends


# -- sampling


@pytest.mark.parametrize(("target", "density"), [("text", "none"), ("text", "mixture"), ("image", "mixture")])
def test_samples_depend_on_the_seed(target, density):
    model = omni(density=density, num_components=3)

    def drawn(seed, temperature=1.0, **options):
        return model.generate(["ab"], target, max_latents=8, temperature=temperature, seed=seed, **options).values

    state = torch.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert drawn(1).shape != drawn(2).shape or not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1, 0.0), drawn(2, 0.0))  # temperature 0 is deterministic
    assert torch.equal(state, torch.get_rng_state())
    if target == "text":
        assert torch.equal(drawn(1, 1.0, top_k=1), drawn(0, 0.0))


def test_tokens_are_sampled_from_their_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    for temperature, top_k in ((1.0, 0), (2.0, 0), (1.0, 2), (1.0, 9)):
        drawn = Sampler(temperature, top_k, torch.Generator().manual_seed(0)).code(scores)
        expected = (scores[0] / temperature).softmax(0)
        if top_k == 2:
            expected = torch.cat((scores[0, :2].softmax(0), torch.zeros(2)))
        assert torch.allclose(torch.bincount(drawn, minlength=4) / 4000, expected, atol=0.03)


def test_progress_is_reported_during_generation():
    model = omni()
    shown = []
    made = model.generate(["ab"], "text", max_latents=5, on_latent=shown.append)
    assert shown[-1] == made.value and len(shown) == len(made.values)
    counts = []
    model.generate(["ab"], "image", on_latent=counts.append)
    assert counts == [1, 2, 3, 4]


def test_an_image_of_another_shape():
    made = omni().generate(["ab"], "image", shape=(1, 3))
    assert made.value.shape == (3, 4, 12) and made.values.shape == (3, 48)


# -- scores


def by_hand(model, pieces, candidate):
    """The summed log-likelihood of a candidate's latents and the end, after its begin latent, for one document."""
    batch = model.processor([[*pieces, *candidate]], end=True)
    before = model.processor([list(pieces)])["kinds"].shape[1] if pieces else 0
    latents = model.embed(batch)
    hidden = model.encode(latents).last[0]
    table = torch.cat((model.model.begin.weight, model.model.modality("text").table.weight))
    total = 0.0
    for t in range(before + 1, batch["kinds"].shape[1]):
        kind, token, h = int(batch["kinds"][0, t]), int(batch["input_ids"][0, t]), hidden[t - 1]
        if model.density_head is not None:
            total += model.density_head(h).log_prob(latents.z[0, t])
        elif kind > FIRST:
            total += F.cosine_similarity(h, latents.z[0, t], dim=0)
        else:
            logits = F.cosine_similarity(h[None], table, dim=-1) * model.log_scale.exp()
            total += logits.log_softmax(0)[token + (4 if kind == FIRST else 0)]
    return float(total)


CANDIDATES = ["red", "a blue one", [{"touch": series(3)}], random_picture(4), ["two", random_picture(5), "pieces"], ""]


@pytest.mark.parametrize("density", ["none", "mixture"])
@torch.no_grad()
def test_scores_are_sums_of_log_likelihoods(density):
    model = omni(density=density, num_components=3)
    for pieces in (CONTEXTS[0], CONTEXTS[2]):
        scores = model.score(pieces, CANDIDATES)
        lists = [one if isinstance(one, list) else [one] for one in CANDIDATES]
        expected = [by_hand(model, pieces, one) for one in lists]
        assert scores.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-2)
        nothing = [by_hand(model, [], one) for one in lists]
        assert model.score([], CANDIDATES).tolist() == pytest.approx(nothing, rel=1e-3, abs=1e-2)
        gained = model.score(pieces, CANDIDATES, against=[[]])
        assert gained.tolist() == pytest.approx([a - b for a, b in zip(expected, nothing)], rel=1e-3, abs=2e-2)


@torch.no_grad()
def test_a_score_does_not_depend_on_the_other_candidates():
    model = omni(orders={"image": "random"}, tell_next=True)
    many = [*CANDIDATES, *(f"number {number}" for number in range(30))]  # more than fit into one chunk
    scores = model.score(CONTEXTS[0], many)
    assert scores.shape == (36,)
    for index in (0, 3, 4, 35):
        assert model.score(CONTEXTS[0], [many[index]]).item() == pytest.approx(scores[index].item(), abs=1e-3)
    backwards = model.score(CONTEXTS[0], many[::-1])
    assert torch.allclose(backwards.flip(0), scores, atol=1e-3)


# -- errors


@pytest.mark.parametrize(
    ("documents", "target", "options", "message"),
    [
        (["ab"], "imag", {}, "target: 'imag' is not known. Did you mean 'image'"),
        ([["ab"], ["c"]], None, {}, "target: name one"),
        ([], "text", {}, "the document is empty"),
        (["ab", {"smell": 1}], "text", {}, "one of text, image, touch"),
        (["ab"], "image", {"shape": (2,)}, r"target 'image': shape \(2,\) does not fit"),
        (["ab"], "clip", {}, "target 'clip': its size has to be given"),
    ],
)
def test_errors_are_one_line(documents, target, options, message):
    boundary = (
        BOUNDARY if target != "clip" else {"text": {}, "clip": {"kind": "video", "image_size": 8, "patch_size": 4}}
    )
    with pytest.raises((ConfigError, ValueError), match=message) as caught:
        omni(boundary).generate(documents, target, **options)
    assert "\n" not in str(caught.value)
