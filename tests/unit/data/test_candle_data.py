"""The data of the candle test: which facts follow from the image and which from touch, and correct answers."""

import io

import datasets
import pytest
import torch
from PIL import Image

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.data.draws import sample_seed
from nextembed.errors import ConfigError
from nextembed.toys.candle import QUESTIONS, THINGS, temperatures


def candle(**settings):
    return DATA.parse({"kind": "candle", **settings})


def texts(document):
    return [segment["value"] for segment in document["segments"] if segment["kind"] == "text"]


def test_documents_and_ground_truth_agree_and_are_reproducible():
    part = candle()
    plain = list(part.documents("validation", 12, seed=3))
    told = list(part.truths("validation", 12, seed=3))
    assert len(plain) == len(told) == 12
    for document, (same, truth) in zip(plain, told):
        assert document["key"] == same["key"] and texts(document) == texts(same)
        for one, other in zip(document["segments"], same["segments"]):
            if one["kind"] != "text":
                assert torch.equal(one["value"], other["value"])
        touches = [segment["value"] for segment in document["segments"] if segment["kind"] == "series"]
        assert all(torch.equal(touch, truth.touch[:, : truth.num_touched]) for touch in touches)
        assert len(touches) == truth.layout.split().count("touch")
    again = list(part.documents("validation", 12, seed=4))
    assert [texts(a) for a in plain] != [texts(b) for b in again]


def test_every_split_has_separate_hot_and_cold_things():
    seen = {}
    for split in ("train", "validation", "test"):
        rows = candle(repeats=2).rows(split)
        seen[split] = {rows[i]["name"] for i in range(0, len(rows), 2)}
        assert len(rows) == 2 * len(seen[split])
        warmths = {THINGS[name] for name in seen[split]}
        assert warmths == ({"hot", "room"} if split == "validation" else {"hot", "cold", "room"})
    assert set.union(*seen.values()) == set(THINGS)  # all names are from the bundled sample
    assert sum(map(len, seen.values())) == len(THINGS) and {"candle", "fire", "ice"} <= seen["train"]


def test_touch_shows_what_is_real_and_the_image_does_not():
    part = candle(noise=0.1)
    rows = part.rows("train")
    row = next(rows[i] for i in range(len(rows)) if rows[i]["name"] == "candle")
    real, true = part.make(row, "picture touch what hot", seed=5, is_real=True, num_touched=32)
    film, untrue = part.make(row, "picture touch what hot", seed=5, is_real=False, num_touched=32)
    assert torch.equal(real["segments"][0]["value"], film["segments"][0]["value"])
    warm, flat = real["segments"][1]["value"], film["segments"][1]["value"]
    assert warm.shape == flat.shape == (1, 32) and warm.dtype == torch.float32
    assert 1.5 < warm[0, -8:].mean() < 2.4 and abs(warm[0, 0]) < 0.4
    assert abs(flat.mean()) < 0.08 and 0.05 < flat.std() < 0.15
    assert texts(real) == ["what is it?", " candle.", "is it hot?", " yes."]
    assert texts(film) == ["what is it?", " candle.", "is it hot?", " no."]
    assert (true.is_hot, untrue.is_hot, true.real_rate) == (True, False, 0.7)
    losses = [segment["loss"] for segment in real["segments"]]
    assert losses == [True, True, False, True, False, True]
    part = part.model_copy(update={"touch_kind": "touch"})
    assert part.make(row, "touch", num_touched=4)[0]["segments"][0]["kind"] == "touch"
    assert part.make(row, "picture touch", num_touched=0)[0]["segments"][0]["kind"] == "image"
    with pytest.raises(ValueError, match="num_touched is 0 to 32, not 33"):
        part.make(row, "touch", num_touched=33)


def test_base_rates_are_kept_by_kind_and_by_name():
    part = candle(real_rate=0.7, real_rates={"candle": 0.2}, repeats=1)
    rows = part.rows("train")
    things = [rows[i] for i in range(len(rows))]
    truths = [part.truth(row, "", sample_seed(0, n, row["name"])) for row in things for n in range(60)]
    candles = [truth.is_real for truth in truths if truth.name == "candle"]
    others = [truth.is_real for truth in truths if truth.warmth != "room" and truth.name != "candle"]
    assert 0.05 < sum(candles) / len(candles) < 0.4
    assert 0.66 < sum(others) / len(others) < 0.74
    assert all(truth.is_real for truth in truths if truth.warmth == "room")
    hot = [truth for truth in truths if truth.is_hot]
    assert all(truth.touch[0, -4:].mean() > 1.5 for truth in hot)
    assert all(truth.answer("hot") == "yes" and truth.answer("cold") == "no" for truth in hot)


def test_layouts_put_text_before_or_after_touch():
    part = candle(layouts={"picture what touch": 1, "name picture touch hot": 1}, touch_samples=[4, 32])
    orders, lengths = set(), set()
    for document, truth in part.truths("train", 60):
        orders.add(tuple(segment["kind"] for segment in document["segments"]))
        lengths.add(truth.num_touched)
        if truth.layout.startswith("name"):
            assert texts(document) == [f"{truth.name}.", QUESTIONS["hot"], f" {truth.answer('hot')}."]
    assert orders == {("image", "text", "text", "series"), ("text", "image", "series", "text", "text")}
    assert lengths == {4, 32}


def test_temperatures_are_determined_by_the_seed():
    assert torch.equal(temperatures(2.0, 32, 0.05, 7), temperatures(2.0, 32, 0.05, 7))
    assert not torch.equal(temperatures(2.0, 32, 0.05, 7), temperatures(2.0, 32, 0.05, 8))
    curves = torch.cat([temperatures(2.0, 32, 0.0, seed) for seed in range(50)])
    assert (curves.diff(dim=1) > 0).all() and (curves[:, 0] == 0).all()
    noise = torch.cat([temperatures(0.0, 32, 0.5, seed) for seed in range(200)])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 0.5) < 0.02


def test_custom_things(tmp_path):
    def png(colour):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    table = datasets.Dataset.from_dict(
        {"photo": [png("red"), png("blue"), png("grey")], "thing": ["stove", "lake", "moss"]},
        features=datasets.Features({"photo": datasets.Image(), "thing": datasets.Value("string")}),
    )
    table.to_parquet(tmp_path / "train.parquet")
    settings = {"source": str(tmp_path), "image_column": "photo", "name_column": "thing", "repeats": 2}
    part = candle(**settings, things={"stove": "hot", "lake": "cold"}, max_shift=0, max_scale=0)
    found = list(part.truths("train"))
    assert [truth.name for _, truth in found] == ["stove", "stove", "lake", "lake"]
    assert len({document["key"] for document, _ in found}) == 4
    with pytest.raises(ConfigError, match="'name' is not known"):
        candle(source=str(tmp_path), image_column="photo").rows("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layouts": ["picture tuch"]}, "'tuch' is not known. Did you mean 'touch'"),
        ({"layouts": {"picture": 0}}, "all weights are 0"),
        ({"touch_samples": [64]}, "64 is more than num_samples=32"),
        ({"real_rates": {"candel": 0.5}}, "Did you mean 'candle'"),
        ({"real_rate": 1.5}, "real_rate"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        candle(**settings)
