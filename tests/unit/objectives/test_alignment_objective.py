"""Image latents that spell the text after the image: which tokens, gradients, and that it is learned."""

import pytest
import torch
from test_emu_objective import LANGUAGE, VISION, batch_of, document, parts, picture

from nextembed.core.types import IGNORE_LABEL
from nextembed.errors import ConfigError
from nextembed.models.emu.connectors import standardise
from nextembed.models.nepa import NepaModel
from nextembed.objectives import AlignmentSettings


@pytest.fixture(scope="module")
def processor():
    return parts().processor()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return parts(language_config={**LANGUAGE, "vocab_size": 4096}).build()  # all tokens have embeddings of their own


def words(processor, row):
    return processor.tokenizer.decode([token for token in row.tolist() if token != IGNORE_LABEL])


def encode(processor, *pieces):
    return processor.encode_document(document(*pieces))


def test_the_tokens_after_each_image(model, processor):
    quiet = processor.encode_document(
        {
            "key": "",
            "segments": [{"kind": "image", "value": picture(5)}, {"kind": "text", "value": "no", "loss": False}],
        },
        end=False,
    )
    batch = batch_of([
        encode(processor, picture(1), "an apple"),
        encode(processor, "two pears:", picture(2), picture(3), "green grapes on a plate of blue glass"),
        encode(processor, "a word"),
        quiet,
    ])  # fmt: skip
    objective = AlignmentSettings().build(model)
    found = objective.spelled(batch)
    assert found.shape == (4, 4) and (found[1] == IGNORE_LABEL).all()  # the first pear is followed by an image
    assert words(processor, found[0]).strip().startswith("an apple"[:4])
    whole = processor.tokenizer("green grapes on a plate of blue glass", add_special_tokens=False)["input_ids"]
    assert found[2].tolist() == whole[:4]
    assert (found[3] == IGNORE_LABEL).all()  # a question is not spelled
    assert objective.count_targets(batch) == (found != IGNORE_LABEL).sum() == objective(model, batch).num_targets


def test_text_of_another_document_and_ends_of_rows(model, processor):
    one, other = encode(processor, picture(1)), encode(processor, "pears and plums")
    batch = batch_of([one], length=64)
    num, more = len(one.positions["input_ids"]), len(other.positions["input_ids"])
    for name in ("input_ids", "labels", "regression_mask"):
        batch[name][0, num : num + more] = other.positions[name]
    batch["document_ids"][0, num : num + more] = 2
    objective = AlignmentSettings().build(model)
    followed = objective.spelled(batch)
    assert (followed[0, 1:] == IGNORE_LABEL).all()  # at most the end token of its own document
    short = {name: value[:, :num] if value.ndim == 2 else value for name, value in batch.items()}
    assert torch.equal(objective.spelled(short), followed)
    assert objective.spelled(batch_of([other])).shape == (0, 4)


def test_encoder_and_connector_get_gradients(model, processor):
    batch = batch_of([encode(processor, picture(1), "an apple")])
    AlignmentSettings().build(model)(model, batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert not used or name.startswith(("model.visual", "model.connector")), name
    assert model.model.connector.projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize("pieces", [("only words",), ("words before", picture(1), picture(2))])
@pytest.mark.parametrize("training", [True, False])
def test_without_targets_nothing_is_learned(model, processor, pieces, training):
    batch = batch_of([processor.encode_document(document(*pieces), end=False)])
    objective = AlignmentSettings().build(model)
    out = objective(model.train(training), batch)
    assert out.loss_sum == 0 and out.num_targets == 0 == objective.count_targets(batch)
    out.loss_sum.backward()  # a step of such rows alone does not fail
    assert model.model.connector.projection.weight.grad.abs().max() == 0


def test_it_learns_and_reports(model, processor):
    batch = batch_of(
        [encode(processor, picture(i), name) for i, name in enumerate(("apple", "two pears", "plum", "fig tree"))]
    )
    standardise(model.model.connector, model.model.visual_features(batch["pixel_values"]), 0.1)  # as latent_std
    objective = AlignmentSettings().build(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    lines = []
    for step in range(100):
        out = objective(model, batch)
        (out.loss_sum / out.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        lines.append({"step": step, **{name: float(a / b) for name, (a, b) in out.metrics.items()}})
    assert lines[-1]["alignment_loss"] < 0.01 < 1 < lines[0]["alignment_loss"]
    # Of 4,096 tokens, though only those of the batch were compared.
    assert lines[0]["alignment_accuracy"] < 0.3 and lines[-1]["alignment_accuracy"] > 0.6
    found = AlignmentSettings().verdict(lines)
    assert found.word == "readout" and f"{lines[-1]['alignment_accuracy']:.1%}" in found.sentence
    assert AlignmentSettings().verdict([]).word == "undecided"


def test_a_model_without_text_is_refused():
    changes = {name: value for name, value in VISION.items() if name != "model_type"}
    with pytest.raises(ConfigError, match="images and text"):
        AlignmentSettings().build(NepaModel(**changes).build())
