"""Dependencies in packed documents: each document is isolated and causal, also with a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from nextembed.core.types import Latents
from nextembed.data.packing import pack
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.models.omni.processing_omni import pad_left

BOUNDARY = {
    "text": {},
    "image": {"image_size": 8, "patch_size": 4},
    "touch": {"kind": "series", "channels": 1, "patch_size": 2},
}
LENGTH = 48
few = settings(max_examples=6, deadline=None, derandomize=True)


@st.composite
def segments(draw):
    kind = draw(st.sampled_from(["text", "image", "touch"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if kind == "text":
        return {"kind": kind, "value": draw(st.text(max_size=4))}
    value = (torch.randint(256, (3, 8, 8), generator=generator, dtype=torch.uint8) if kind == "image" else
             torch.randn(1, draw(st.integers(1, 6)), generator=generator))  # fmt: skip
    return {"kind": kind, "value": value, "order": draw(st.sampled_from(["raster", "random", "hilbert"]))}


documents = st.lists(segments(), min_size=1, max_size=2)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    torch.manual_seed(0)
    config = OmniConfig(modalities=BOUNDARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=48, layerscale_value=1.0, tell_next=True)  # fmt: skip
    made = OmniForPreTraining(config).eval()
    made.set_attn_implementation(request.param)
    with torch.no_grad():  # with the initial scale of 0.02, positions barely interact
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
        made.model.next_place.weight.normal_(std=0.3)
    made.processor = OmniProcessor(BOUNDARY, tell_next=True)
    return made


def encoded(model, document, seed=0):
    return model.processor.encode_document({"segments": document, "seed": seed})


@torch.no_grad()
def hidden(model, batch):
    return model.encode(model.embed(batch)).last


@few
@given(first=documents, second=documents, other=documents)
def test_packed_documents_are_isolated(model, first, second, other):
    """A document's states are the same alone and next to any other document, before or after it."""
    one, two, three = (encoded(model, document) for document in (first, second, other))
    alone = hidden(model, pad_left([two]))[0]
    start, end = one.length, one.length + two.length
    for rows in ([[one, two], [three, two]], [[three, two], [one, two, three]]):
        batch = pack(rows, LENGTH + two.length, [0])
        found = hidden(model, batch)
        for row, parts in enumerate(rows):
            at = parts[0].length
            assert torch.allclose(found[row, at : at + two.length], alone, atol=1e-4)
            assert batch["document_ids"][row, at] == 2 and not batch["latent_mask"][row, at]
            assert torch.allclose(found[row, :at], hidden(model, pad_left([parts[0]]))[0], atol=1e-4)
    assert end - start == two.length


@few
@given(document=documents, seed=st.integers(0, 9), data=st.data())
def test_a_latent_affects_only_later_positions(model, document, seed, data):
    batch = pack([[encoded(model, document), encoded(model, document, seed)]], LENGTH, [0])
    length = int((batch["document_ids"] == 1).sum())
    t = data.draw(st.integers(0, length - 1))
    latents = model.embed(batch)
    changed = latents.z.clone()
    changed[:, t] += torch.linspace(-1, 1, 32)  # not a constant, which layer norm would remove
    with torch.no_grad():
        moved = model.encode(latents).last - model.encode(latents._replace(z=changed)).last
    moved = moved.abs().amax(-1)[0]
    assert (moved[:t] < 1e-5).all() and (moved[t:length] > 1e-6).all()
    assert (moved[length:] < 1e-5).all()  # the next document and padding


@few
@given(document=documents, cuts=st.lists(st.integers(1, 10), min_size=1, max_size=3))
def test_a_cache_has_no_effect(model, document, cuts):
    """Documents of different lengths, encoded in parts of any size."""
    batch = pad_left([encoded(model, document), encoded(model, document * 2), encoded(model, document[:1])])
    latents = model.embed(batch)
    cache, found, at = DynamicCache(config=model.config), [], 0
    with torch.no_grad():
        for size in [*cuts, latents.z.shape[1]]:
            end = min(at + size, latents.z.shape[1])
            if end > at:
                part = Latents(latents.z[:, at:end], latents.coordinates[:, at:end], latents.documents[:, :end],
                               latents.following[:, at:end])  # fmt: skip
                found.append(model.encode(part, past_key_values=cache).last)
            at = end
        whole = model.encode(latents).last
    real = batch["document_ids"] > 0
    assert torch.allclose(torch.cat(found, 1)[real], whole[real], atol=1e-4)


@few
@given(batch=st.lists(documents, min_size=2, max_size=3))
def test_padding_has_no_effect(model, batch):
    """On the left, as in generation, and on the right, as in training."""
    parts = [encoded(model, document) for document in batch]
    left = hidden(model, pad_left(parts))
    right = hidden(model, pack([[part] for part in parts], max(part.length for part in parts) + 3, [0]))
    assert left.isfinite().all() and right.isfinite().all()
    for row, part in enumerate(parts):
        alone = hidden(model, pad_left([part]))[0]
        assert torch.allclose(left[row, left.shape[1] - part.length :], alone, atol=1e-4)
        assert torch.allclose(right[row, : part.length], alone, atol=1e-4)


@few
@given(document=documents, seed=st.integers(0, 9))
def test_next_coordinates_matter_only_if_an_order_is_given(model, document, seed):
    batch = pad_left([encoded(model, document, seed)])
    told = batch["next_coordinates"].any(-1)[0]
    silent = {**batch, "next_coordinates": torch.zeros_like(batch["next_coordinates"])}
    moved = (hidden(model, batch) - hidden(model, silent)).abs().amax(-1)[0]
    first = int(told.int().argmax()) if bool(told.any()) else len(told)
    assert (moved[:first] < 1e-6).all() and (moved[first:] > 1e-6).all()
    ordered = any(s["kind"] != "text" and s["order"] != "raster" and len(s["value"][0]) > 2 for s in document)
    assert bool(told.any()) is ordered


@few
@given(document=documents)
def test_gradients_stay_within_a_document(model, document):
    batch = pack([[encoded(model, document), encoded(model, [{"kind": "text", "value": "abc"}])]], LENGTH, [0])
    length = int((batch["document_ids"] == 1).sum())
    latents = model.embed(batch)
    z = latents.z.detach().requires_grad_()
    last = model.encode(latents._replace(z=z)).last
    for t in (0, length - 1, length, length + 4):
        (gradient,) = torch.autograd.grad(last[0, t].sin().sum(), z, retain_graph=True)
        start = 0 if t < length else length
        seen = gradient[0].abs().amax(-1)
        assert (seen[start : t + 1] > 0).all() and not seen[:start].any() and not seen[t + 1 :].any()
