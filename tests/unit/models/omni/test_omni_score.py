"""Scores of candidate continuations: the context is encoded once, and scores equal those of whole documents."""

import pytest
import torch
from torch import Tensor

from nextembed.errors import ConfigError
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.models.omni.generation import log_likelihoods, score

MODALITIES = {"text": {}, "image": {"image_size": 8, "patch_size": 4}, "touch": {"kind": "series", "patch_size": 2}}
WORDS = ["a", "fire", "ice cream", "the sun"]


def small(orders: dict[str, str] | None = None, density: str = "none") -> tuple[OmniForPreTraining, OmniProcessor]:
    torch.manual_seed(0)
    config = OmniConfig(modalities=MODALITIES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, layerscale_value=0.5, tell_next=orders is not None, density=density,
                        num_components=2)  # fmt: skip
    model = OmniForPreTraining(config).eval()
    with torch.no_grad():  # larger than at initialisation, so that the context has an effect
        for p in model.parameters():
            p.mul_(4) if p.ndim > 1 else None
    return model, OmniProcessor(MODALITIES, orders, orders is not None)


def pictures(num: int) -> list[Tensor]:
    return list(torch.randint(0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))


def whole(model: OmniForPreTraining, processor: OmniProcessor, context: list, candidates: list) -> Tensor:
    """The same scores from one forward pass over each whole document."""
    found = []
    for candidate in candidates:
        before = processor.encode_document(processor.document(context), end=False).length if context else 0
        inputs = processor([[*context, *candidate]], end=True)
        with torch.no_grad():
            found.append(log_likelihoods(model, inputs)[0, before + 1 :].sum())
    return torch.stack(found)


@pytest.mark.parametrize("orders", [None, {"image": "random", "touch": "time"}])
@pytest.mark.parametrize("density", ["none", "mixture"])
def test_encoding_the_context_once_equals_whole_documents(orders: dict[str, str] | None, density: str) -> None:
    model, processor = small(orders, density)
    image, *others = pictures(4)
    touch = {"touch": torch.randn(1, 7, generator=torch.Generator().manual_seed(2))}
    for context, candidates in (
        ([image], [[word] for word in WORDS]),
        (["fire:", touch], [[one] for one in others]),
        ([touch], [["hot", others[0]], ["ice"], [others[1], touch]]),
        ([], [[word] for word in WORDS]),
    ):
        found = score(model, processor, context, candidates)
        assert torch.allclose(found, whole(model, processor, context, candidates), atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_context_and_not_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = small()
    model.processor = processor
    one, other = pictures(2)
    found = model.score([one], WORDS)
    assert (found - model.score([other], WORDS)).abs().max() > 1e-3
    monkeypatch.setattr("nextembed.models.omni.generation.CHUNK", 2)
    assert torch.allclose(found, model.score([one], WORDS), atol=1e-5)


def test_scores_against_an_empty_context() -> None:
    model, processor = small()
    model.processor = processor
    image = pictures(1)[0]
    apart = model.score([image], WORDS) - model.score([], WORDS)
    assert torch.allclose(model.score([image], WORDS, against=[[]]), apart, atol=1e-5)


def test_scores_against_other_contexts_subtract_their_mean() -> None:
    model, processor = small()
    model.processor = processor
    image, *others = pictures(3)
    mean = torch.stack([model.score([other], WORDS) for other in others]).mean(0)
    found = model.score([image], WORDS, against=[[other] for other in others])
    assert torch.allclose(found, model.score([image], WORDS) - mean, atol=1e-5)


def test_no_candidates() -> None:
    model, processor = small()
    with pytest.raises(ConfigError, match="candidates"):
        score(model, processor, ["a"], [])
