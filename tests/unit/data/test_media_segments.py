"""Interleaved documents with audio, series, videos and custom kinds."""

import base64
import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sounds import film, tone, wav

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.data.media import parse_series
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, colour, colour)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    here = tmp_path / "data"
    here.mkdir()
    (here / "a.wav").write_bytes(wav(tone(0.1)))
    (here / "a.png").write_bytes(png(7))
    (here / "a.mp4").write_bytes(film(6))
    (here / "broken.wav").write_bytes(b"none")
    (tmp_path / "outside.wav").write_bytes(wav(tone(0.1)))
    return here


def lines(folder, *documents):
    rows = [json.dumps({"segments": segments}) + "\n" for segments in documents]
    (folder / "train.jsonl").write_text("".join(rows))
    return {"kind": "interleaved", "source": str(folder), "max_skipped_rate": 1.0}


def kinds(document):
    return [segment["kind"] for segment in document["segments"]]


def test_every_kind_in_both_notations(folder):
    short = [{"text": "a"}, {"image": "a.png"}, {"audio": "a.wav"}, {"video": "a.mp4"}, {"series": [[0, 1], [2, 3]]}]
    typed = [{"type": kind, "value": value} for piece in short for kind, value in piece.items()]
    mixed = [{"type": kind, kind: value} for piece in short for kind, value in piece.items()]
    found = list(DATA.parse(lines(folder, short, typed, mixed) | {"num_frames": 3}).documents("train"))
    assert len(found) == 3
    for document in found:
        text, image, audio, video, series = document["segments"]
        assert kinds(document) == ["text", "image", "audio", "video", "series"] and text["value"] == "a"
        assert image["value"].shape == (3, 4, 4) and image["value"].dtype == torch.uint8
        assert audio["value"].shape == (1600,) and audio["value"].dtype == torch.float32
        assert video["value"].shape == (3, 3, 32, 32) and video["value"].dtype == torch.uint8
        assert torch.equal(series["value"], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        assert all(segment["loss"] for segment in document["segments"])


def test_bytes_in_lines_are_base64_and_attributes_are_kept(folder):
    inline = base64.b64encode(wav(tone(0.2))).decode()
    document = [
        {"type": "audio", "bytes": inline, "loss": False},
        {"type": "image", "path": "a.png", "order": "hilbert"},
        {"audio": {"bytes": inline}},
        {"audio": {"path": "a.wav"}},
    ]
    part = DATA.parse(lines(folder, document, [{"audio": {"bytes": "no base64!"}}]))
    documents = part.documents("train")
    (found,) = list(documents)
    first, image, second, third = found["segments"]
    assert len(first["value"]) == len(second["value"]) == 3200 and len(third["value"]) == 1600
    assert not first["loss"] and image["order"] == "hilbert" and "order" not in first
    assert list(documents.skipped.reasons.values()) == ["its bytes are not base64"]


def test_parquet_with_bytes_stays_undecoded_until_read(tmp_path):
    piece = {
        "type": datasets.Value("string"),
        "text": datasets.Value("string"),
        "image": datasets.Image(),
        "audio": datasets.Audio(),
        "series": datasets.List(datasets.List(datasets.Value("float32"))),
    }
    segments = [
        {"type": "image", "image": {"bytes": png(9), "path": None}},
        {"type": "audio", "audio": {"bytes": wav(tone(0.1)), "path": None}},
        {"type": "text", "text": "hum"},
        {"type": "series", "series": [[1.0, 2.0, 3.0]]},
    ]
    segments = [{name: one.get(name) for name in piece} for one in segments]
    table = datasets.Dataset.from_dict(
        {"segments": [segments]}, features=datasets.Features({"segments": datasets.List(piece)})
    )
    table.to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        part = DATA.parse({"kind": "interleaved", "source": str(tmp_path), "streaming": streaming})
        (document,) = list(part.documents("train"))
        assert kinds(document) == ["image", "audio", "text", "series"]
        assert len(document["segments"][1]["value"]) == 1600
        assert document["segments"][3]["value"].tolist() == [[1.0, 2.0, 3.0]]


def test_broken_media_by_setting(folder):
    paths = ["gone.wav", "../outside.wav", "broken.wav", "https://host/a.wav"]
    settings = lines(folder, *[[{"text": "a"}, {"audio": path}] for path in paths], [])
    documents = DATA.parse(settings).documents("train")
    assert list(documents) == []
    reasons = list(documents.skipped.reasons.values())
    told = ["no such file", "outside the data folder", "not a sound", "are not downloaded", "empty"]
    assert len(reasons) == 5 and all(word in reason for word, reason in zip(told, reasons))
    dropped = list(DATA.parse(settings | {"missing_images": "drop"}).documents("train"))
    assert [kinds(document) for document in dropped] == [["text"]] * 4  # the empty document is still skipped
    with pytest.raises(DataError, match="document 0: no such file"):
        list(DATA.parse(settings | {"missing_images": "error"}).documents("train"))
    with pytest.raises(DataError, match="unreadable"):
        list(DATA.parse(settings | {"max_skipped_rate": 0.0}).documents("train"))


def test_unknown_kinds_by_setting(folder):
    settings = lines(folder, [{"text": "a"}, {"type": "smell", "value": [1]}], [{"smell": 1}, {"text": "b"}])
    documents = DATA.parse(settings).documents("train")
    assert list(documents) == []
    reason = "a segment has one of text, image, video, audio, series, not 'smell'"
    assert list(documents.skipped.reasons.values()) == [reason] * 2
    dropped = DATA.parse(settings | {"unknown_kinds": "drop"}).documents("train")
    assert [document["segments"][0]["value"] for document in dropped] == ["a", "b"]
    with pytest.raises(DataError, match=r"document 0: a segment has one of .* not 'smell'"):
        list(DATA.parse(settings | {"unknown_kinds": "error"}).documents("train"))
    malformed = lines(folder, [{"type": 3, "value": 1}], [{"loss": True}], ["text"], [{"text": "a", "image": "a.png"}])
    documents = DATA.parse(malformed | {"unknown_kinds": "drop"}).documents("train")
    assert list(documents) == [] and len(documents.skipped.reasons) == 4


def test_custom_kinds(folder):
    points = [[0.5, 0.25, 1.0], [1.0, 2.0, 3.0]]
    settings = lines(folder, [{"points": points}, {"type": "touch", "value": [1, 2]}, {"hum": "a.wav", "loss": False}])
    own = {"own_kinds": {"points": "raw", "touch": "series", "hum": "audio"}}
    (document,) = list(DATA.parse(settings | own).documents("train"))
    assert kinds(document) == ["points", "touch", "hum"]
    raw, touch, hum = (segment["value"] for segment in document["segments"])
    assert raw == points and touch.tolist() == [[1.0, 2.0]] and len(hum) == 1600
    assert not document["segments"][2]["loss"]
    listed = DATA.parse(settings | {"own_kinds": ["points", "touch", "hum"]})
    assert listed.own_kinds == dict.fromkeys(["points", "touch", "hum"], "raw")
    with pytest.raises(ConfigError, match="own_kinds"):
        DATA.parse(settings | {"own_kinds": {"touch": "tactile"}})


def test_limits_of_length_and_number(folder):
    document = [{"audio": "a.wav"}, {"image": "a.png"}, {"series": [1]}, {"video": "a.mp4"}, {"text": "end"}]
    settings = lines(folder, document)
    (found,) = list(DATA.parse(settings | {"max_images": 1}).documents("train"))
    assert kinds(found) == ["audio", "image", "series"]  # audio and series do not count
    (found,) = list(DATA.parse(settings | {"max_seconds": 0.05, "missing_images": "drop"}).documents("train"))
    assert kinds(found) == ["image", "series", "text"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2], [3]], "channels of equal length"),
        ([[1, "a"]], "not a series of numbers"),
        ("words", "not a series of numbers"),
        ([], "without samples"),
        ([[]], "without samples"),
        ([[[1]]], "not 3 axes"),
        (5, "not 0 axes"),
        ([[1, None]], "missing or not finite"),
        ([1e400], "missing or not finite"),
        ({"a": 1}, "not a series of numbers"),
    ],
)
def test_invalid_series(value, reason):
    with pytest.raises(Unreadable, match=reason):
        parse_series(value)


def test_series_in_every_form():
    for value in ([1, 2], [[1, 2]], "[1, 2]", np.array([1.0, 2.0]), torch.tensor([[1.0, 2.0]])):
        assert parse_series(value).tolist() == [[1.0, 2.0]]
    with pytest.raises(Unreadable, match="more than max_bytes=16"):
        parse_series([1, 2, 3, 4, 5], max_bytes=16)
