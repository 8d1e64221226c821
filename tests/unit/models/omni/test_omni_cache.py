"""The growing cache: hidden states as without a cache, and no copy at each step."""

import torch

from nextembed.models.omni import OmniConfig, OmniForPreTraining
from nextembed.models.omni.cache import GrowingLayer, growing_cache


def states(num: int, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, num, 4, generator=torch.Generator().manual_seed(seed))


def test_the_cache_returns_what_was_added() -> None:
    layer, fed = GrowingLayer(), [states(num, seed=num) for num in (5, 1, 1, 9, 1)]
    for number in range(len(fed)):
        keys, values = layer.update(fed[number], 2 * fed[number])
        whole = torch.cat(fed[: number + 1], dim=2)
        assert torch.equal(keys, whole) and torch.equal(values, 2 * whole)
        assert layer.get_seq_length() == whole.shape[2]


def test_steps_append_in_place() -> None:
    layer = GrowingLayer()
    keys, _ = layer.update(states(5), states(5))
    places = {keys.data_ptr()}
    for _ in range(5):  # there is room for 5 more
        places.add(layer.update(states(1), states(1))[0].data_ptr())
    assert len(places) == 1


def test_selected_repeated_and_cropped_rows_continue() -> None:
    layer = GrowingLayer()
    first, new = states(3), states(1, rows=1, seed=1)
    layer.update(first, first)
    layer.batch_select_indices(torch.tensor([1]))
    assert torch.equal(layer.update(new, new)[0], torch.cat((first[1:], new), dim=2))
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.update(states(1), states(1))[0][:, :, 3:4], new.expand(2, -1, -1, -1))
    layer.crop(-2)
    assert torch.equal(
        layer.update(states(1), states(1))[0], torch.cat((first[1:].expand(2, -1, -1, -1), states(1)), 2)
    )
    layer.reset()
    assert torch.equal(layer.update(first, first)[0], first)


@torch.no_grad()
def test_hidden_states_equal_those_of_the_whole_document() -> None:
    torch.manual_seed(0)
    config = OmniConfig(modalities={"text": {}}, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, layerscale_value=1.0)  # fmt: skip
    model = OmniForPreTraining(config).eval()
    num = 40
    batch = {
        "kinds": torch.full((1, num), 2), "input_ids": torch.arange(num)[None],
        "coordinates": torch.zeros(1, num, 3), "document_ids": torch.ones(1, num, dtype=torch.int64),
    }  # fmt: skip
    batch["coordinates"][0, :, 0] = torch.arange(num)
    latents = model.embed(batch)
    whole = model.encode(latents).last
    cache, found = growing_cache(), []
    for start, end in [(0, 7), *((i, i + 1) for i in range(7, num))]:
        part = latents._replace(z=latents.z[:, start:end], coordinates=latents.coordinates[:, start:end],
                                documents=batch["document_ids"][:, :end])  # fmt: skip
        found.append(model.encode(part, past_key_values=cache).last)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-5)
