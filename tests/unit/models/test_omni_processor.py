"""The Omni processor: documents to positions and values, orders, next coordinates, errors."""

import numpy as np
import pytest
import torch
from omni_tiny import BOUNDARY, omni, pil, random_picture, series
from PIL import Image
from transformers import AutoProcessor

from nextembed.data.packing import OK, TOO_LONG, TRUNCATED, Fit
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError
from nextembed.models.omni import OmniParts, OmniProcessor
from nextembed.models.omni.configuration_omni import BEGIN, FIRST

TEXT, IMAGE, TOUCH = FIRST, FIRST + 1, FIRST + 2
END = 3  # the index of the end latent, after those of the three modalities
ORDERED = ["hilbert", "random", "coarse_to_fine"]


@pytest.fixture(scope="module")
def processor():
    return OmniProcessor(BOUNDARY)


def document(*segments):
    return {"key": "a", "segments": [dict(zip(("kind", "value", "loss"), one)) for one in segments]}


def test_positions_of_a_document(processor):
    encoded = processor.encode_document(
        document(("text", "hi"), ("touch", series(steps=5)), ("image", random_picture()))
    )
    found = {name: part.tolist() for name, part in encoded.positions.items()}
    assert found["kinds"] == [BEGIN, TEXT, TEXT, BEGIN, TOUCH, TOUCH, TOUCH, BEGIN, *[IMAGE] * 4, BEGIN]
    assert found["input_ids"] == [0, ord("h"), ord("i"), 2, 0, 0, 0, 1, 0, 0, 0, 0, END]
    time = [row[0] for row in found["coordinates"]]
    assert time == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9]  # all patches of an image have the same time
    assert [row[1:] for row in found["coordinates"]][8:12] == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    assert not encoded.positions["coordinates"][[*range(8), 12], 1:].any()
    assert found["latent_mask"] == [False] + [True] * 12
    assert set(found) == {"kinds", "input_ids", "coordinates", "latent_mask"}
    assert {name: tuple(part.shape) for name, part in encoded.values.items()} == {
        "values.image": (4, 48), "values.touch": (3, 4)
    }  # fmt: skip


def test_segments_without_loss_are_not_targets(processor):
    seen, asked, answer = ("image", random_picture(), False), ("text", "what?", False), ("text", "ok")
    mask = processor.encode_document(document(seen, asked, answer)).positions["latent_mask"]
    assert mask.tolist() == [False] * 11 + [True] * 4  # begin latent, "o", "k", end
    mask = processor.encode_document(document(answer, asked)).positions["latent_mask"]
    assert mask.tolist() == [False, True, True] + [False] * 7  # the end belongs to the last segment
    mask = processor.encode_document(document(("text", "ab", False))).positions["latent_mask"]
    assert not mask.any()


def test_a_document_may_have_no_end(processor):
    pieces = ["ab", random_picture()]
    open_, closed = (processor([pieces], end=end) for end in (False, True))
    assert open_["kinds"].shape == (1, 8) and closed["kinds"].shape == (1, 9)
    for name in ("kinds", "input_ids", "coordinates"):
        assert torch.equal(open_[name], closed[name][:, :-1])
    assert closed["input_ids"][0, -1] == END


def test_documents_are_left_padded_and_values_are_in_reading_order(processor):
    long, short = [random_picture(0), "abc", random_picture(1)], [random_picture(2)]
    batch = processor([long, short])
    assert batch["document_ids"].tolist() == [[1] * 14, [0] * 9 + [1] * 5]
    alone = processor([short])
    for name in ("kinds", "input_ids", "coordinates", "latent_mask"):
        assert torch.equal(batch[name][1:, 9:], alone[name])
        assert not batch[name][1, :9].any()
    patches = [processor.readers["image"].patches(random_picture(seed)).values for seed in range(3)]
    assert torch.equal(batch["values.image"], torch.cat(patches))
    assert batch["values.touch"].shape == (0, 4)


def test_empty_text_is_a_begin_latent(processor):
    encoded = processor.encode_document(document(("text", ""), ("text", "a")))
    assert encoded.positions["input_ids"].tolist() == [0, 0, ord("a"), END]
    assert encoded.positions["coordinates"][:, 0].tolist() == [0, 1, 2, 3]


# -- orders


@pytest.mark.parametrize("order", [*ORDERED, "time", "raster"])
@pytest.mark.parametrize("kind", ["image", "touch"])
def test_orders_are_permutations_of_the_same_latents(order, kind):
    image = {"image_size": 12, "patch_size": 4}
    processor = OmniProcessor(BOUNDARY | {"image": image}, tell_next=True)
    value = random_picture(0, 12) if kind == "image" else series(0, 14)
    plain, ordered = (
        processor.encode_document({"segments": [{"kind": kind, "value": value, "order": name}], "seed": 5})
        for name in ("raster", order)
    )
    rows = [
        torch.cat((one.positions["coordinates"][1:-1], one.values[f"values.{kind}"]), 1) for one in (plain, ordered)
    ]
    assert sorted(rows[0].tolist()) == sorted(rows[1].tolist())  # each latent keeps its coordinates
    for name in ("kinds", "input_ids", "latent_mask"):
        assert torch.equal(plain.positions[name], ordered.positions[name])
    for at in (0, -1):
        assert torch.equal(plain.positions["coordinates"][at], ordered.positions["coordinates"][at])
    in_place = order in ("raster", "time") or (order == "hilbert" and kind == "touch")
    assert torch.equal(rows[0], rows[1]) is in_place


@pytest.mark.parametrize("order", [*ORDERED, "time"])
@pytest.mark.parametrize(("kind", "size"), [("image", 8), ("image", 12), ("touch", 14)])  # 12: a patch at (0, 0)
def test_each_latent_gets_the_coordinates_of_the_next(order, kind, size):
    image = {"image_size": size if kind == "image" else 8, "patch_size": 4}
    processor = OmniProcessor(BOUNDARY | {"image": image}, {kind: order}, tell_next=True)
    value = random_picture(0, size) if kind == "image" else series(0, size)
    found = processor.encode_document(document(("text", "abc"), (kind, value), ("text", "d"))).positions
    told, places = found["next_coordinates"], found["coordinates"]
    start = 4
    end = start + 1 + (size // 4) ** 2 if kind == "image" else start + 1 + size // 2
    assert not told[:start].any() and not told[end - 1 :].any()  # text, and everything after the segment
    for t in range(start, end - 1):
        assert told[t].any()  # (0, 0, 0) means unknown
        assert torch.equal(told[t, 1:], places[t + 1, 1:])
        assert told[t, 0].item() == pytest.approx((places[t + 1, 0] - places[t, 0] + 0.5).item() / 16)


def test_without_an_order_next_coordinates_are_zero(processor):
    told = OmniProcessor(BOUNDARY, tell_next=True)([[random_picture(), "a"]])["next_coordinates"]
    assert told.shape == (1, 7, 3) and not told.any()
    assert "next_coordinates" not in processor([[random_picture(), "a"]])


def test_random_orders_depend_on_the_seed_of_the_document():
    processor = OmniProcessor(BOUNDARY, {"image": "random"}, tell_next=True)
    image = {"kind": "image", "value": random_picture()}

    def places(seed):
        return processor.encode_document({"segments": [image, image], "seed": seed}).positions["coordinates"]

    assert torch.equal(places(1), places(1))
    drawn = {tuple(places(seed)[1:5, 1:].flatten().tolist()) for seed in range(40)}
    assert len(drawn) > 10  # out of 24
    assert any(not torch.equal(p[1:5, 1:], p[6:10, 1:]) for p in map(places, range(5)))  # one order per segment
    state = torch.get_rng_state()
    places(3)
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_of_a_segment_overrides_the_default():
    processor = OmniProcessor(BOUNDARY, {"image": "random"})
    value = random_picture()
    own = {"segments": [{"kind": "image", "value": value, "order": "raster"}], "seed": 1}
    plain = OmniProcessor(BOUNDARY).encode_document(own)
    assert torch.equal(processor.encode_document(own).values["values.image"], plain.values["values.image"])


# -- pieces


def test_all_forms_of_pieces(processor):
    tensor = random_picture()
    want = processor([[tensor]])["values.image"]
    array = tensor.permute(1, 2, 0).numpy()
    for piece in (array, Image.fromarray(array), {"image": Image.fromarray(array)}, {"image": tensor},
                  {"kind": "image", "value": tensor}):  # fmt: skip
        assert torch.equal(processor([[piece]])["values.image"], want)
        assert torch.equal(processor([piece])["values.image"], want)  # a single document
        assert torch.equal(processor(piece)["values.image"], want)  # a single piece
    assert torch.equal(processor("ab")["input_ids"], processor([["ab"]])["input_ids"])
    grey = processor([[Image.new("L", (8, 8), 90)]])["values.image"]
    assert torch.allclose(grey, torch.full((4, 48), 90 / 127.5 - 1))
    assert torch.allclose(processor([[np.full((8, 8), 90, np.uint8)]])["values.image"], grey)
    clear = processor([[Image.new("RGBA", (8, 8), (9, 200, 30, 0))]])["values.image"]
    assert (clear == 1).all()  # transparent pixels become white


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document is empty"),
        ([{"smell": 1}], r"\{modality: value\} with one of text, image, touch"),
        ([{"kind": "touch"}], "one of text, image, touch"),
        ([{"kind": "smell", "value": 1}], "a segment of kind 'smell'; the model has text, image, touch"),
        ([5], "is text, an image or .*, not int"),
        ([np.zeros((8, 8))], "not ndarray"),
        ([torch.zeros(4, 8, 8, dtype=torch.uint8)], "an image of 4 channels; the model takes 3"),
        ([torch.zeros(8, 8)], r"an image is a tensor \[C, H, W\]"),
        ([{"touch": torch.zeros(3, 8)}], r"a series is \[2, T\], not \[3, 8\]"),
        ([{"touch": "words"}], r"a series is numbers \[2, T\], not str"),
        ([{"touch": None}], "a series is"),
        ([{"touch": torch.full((2, 4), float("nan"))}], "values that are not numbers"),
        ([{"text": 3}], "text is a str, not int"),
        ([{"kind": "image", "value": torch.zeros(3, 8, 8), "order": "spiral"}], "no order 'spiral'"),
    ],
    ids=str,
)
def test_invalid_documents(processor, document, message):
    with pytest.raises(ValueError, match=message) as caught:
        processor([document])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"orders": {"sound": "hilbert"}}, "no modality 'sound'"),
        ({"orders": {"image": "hilbrt"}}, "orders.image: order 'hilbrt' is not known. Did you mean 'hilbert'"),
        ({"modalities": {"text": {"vocabulary": 4096}}}, "'text' reads tokens; give the processor a tokenizer"),
    ],
)
def test_invalid_processors(settings, message):
    with pytest.raises(ValueError, match=message):
        OmniProcessor(**{"modalities": BOUNDARY, **settings})
    if "orders" in settings:
        with pytest.raises(ConfigError, match=message):
            OmniParts(modalities=BOUNDARY, orders=settings["orders"], hidden_size=32, num_attention_heads=2).processor()


def test_invalid_patches(monkeypatch):
    processor = OmniProcessor(BOUNDARY)
    monkeypatch.setattr(processor.readers["touch"], "value_size", 7)
    with pytest.raises(ValueError, match=r"patches of 'touch' are \[3, 4\], its value_size 7"):
        processor([[{"touch": series()}]])


# -- documents that are too long


def test_long_documents_are_truncated_without_splitting_images(processor):
    words = ("text", "abcdef")
    fit = Fit(processor.encode_document, 10, "truncate")
    outcome, cut = fit(document(words, ("image", random_picture())))
    assert outcome == TRUNCATED and cut.positions["kinds"].tolist() == [BEGIN, *[TEXT] * 6]
    assert cut.values["values.image"].shape == (0, 48)
    outcome, cut = fit(document(("image", random_picture()), words))
    assert outcome == TRUNCATED and cut.positions["kinds"].tolist() == [BEGIN, *[IMAGE] * 4, BEGIN, *[TEXT] * 4]
    assert cut.values["values.image"].shape == (4, 48)
    assert fit(document(("text", "abc"), ("text", "def")))[0] == OK
    short = Fit(processor.encode_document, 4, "truncate")
    assert short(document(("image", random_picture()), words)) == (TOO_LONG, None)
    with pytest.raises(Unreadable, match="an image of 5 channels"):
        fit(document(("image", torch.zeros(5, 8, 8, dtype=torch.uint8))))


# -- saving and loading


def test_round_trip_of_bytes(tmp_path):
    processor = OmniProcessor(BOUNDARY, {"image": "random"}, tell_next=True)
    processor.save_pretrained(tmp_path)
    omni().save_pretrained(tmp_path)  # the configuration determines the processor
    for again in (OmniProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, OmniProcessor) and again.to_dict() == processor.to_dict()
        one, two = (p([["ab", pil(), {"touch": series()}]], end=True) for p in (processor, again))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_round_trip_of_a_tokenizer(tmp_path):
    parts = OmniParts(modalities={"text": {}, "note": {"kind": "text", "vocabulary": "bytes"}}, tokenizer="bundled",
                      hidden_size=32, num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    processor, model = parts.processor(), parts.build()
    size = len(processor.words)
    assert model.config.modalities["text"]["vocabulary"] == size == len(model.model.modality("text").table.weight)
    processor.check(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    sentence = "a red apple, and 2 pears"
    ids = again([[sentence]])["input_ids"]
    assert torch.equal(ids, processor([[sentence]])["input_ids"]) and 5 < ids.shape[1] < len(sentence)
    assert again.read("text", ids[0, 1:], ()).strip() == sentence
    note = again([[{"note": "héé"}]])["input_ids"][0, 1:]
    assert note.tolist() == list("héé".encode()) and again.read("note", note, ()) == "héé"
    again.check(model.config)
    assert again.spelled == ["text"]


def test_the_processor_of_another_model_is_rejected():
    model = omni()
    for other in (OmniProcessor({"text": {}}), OmniProcessor(BOUNDARY, tell_next=True)):
        with pytest.raises(ConfigError, match="made for other modalities"):
            other.check(model.config)


def test_a_tokenizer_larger_than_its_table():
    words = OmniParts(modalities={"text": {}}, tokenizer="bundled").tokens()
    processor = OmniProcessor({"text": {"vocabulary": 10}}, words=words)
    with pytest.raises(ValueError, match="more tokens than the vocabulary of 10"):
        processor(["a red apple"])
