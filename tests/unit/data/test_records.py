"""Tables with columns of any modality: which documents a row yields, how often, and from which columns."""

import io
import json
from collections import Counter

import datasets
import pytest
import torch
from encoding import encode as encode_document
from PIL import Image
from sounds import film, tone, wav

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.draws import Draws
from nextembed.data.layouts import choices, drawn_layout
from nextembed.data.records import Records
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, colour, colour)).save(file, "PNG")
    return file.getvalue()


def held(data):
    return None if data is None else {"bytes": data, "path": None}


def parquet(file, columns, **media):
    """A table whose media columns contain whole files as bytes."""
    bare = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    columns = columns | {name: [held(data) for data in columns[name]] for name in media}
    table = datasets.Dataset.from_dict(columns)
    for name, feature in media.items():  # first as raw bytes: otherwise `datasets` would encode audio with torchcodec
        table = table.cast_column(name, bare).cast_column(name, feature)
    table.to_parquet(file)


def stamps(folder, name="train", num=40):
    """Rows with an image and captions; every fourth has a sound, every second a French caption."""
    columns = {
        "id": [f"s{i}" for i in range(num)],
        "image": [png(i) for i in range(num)],
        "caption": [f"thing {i}" for i in range(num)],
        "others": [{"fr": f"chose {i}" if i % 2 else None} for i in range(num)],
        "sound": [wav(tone(0.01)) if i % 4 == 0 else None for i in range(num)],
    }
    parquet(folder / f"{name}.parquet", columns, image=datasets.Image(), sound=datasets.Audio())
    return {"kind": "records", "source": str(folder)}


PIECES = {
    "image": "image",
    "en": {"kind": "text", "column": "caption", "prompts": ["English: {text}."]},
    "fr": {"kind": "text", "column": "others.fr", "prompts": ["Français : {text}."]},
    "sound": "audio",
}


def short(document):
    """Short forms of segments: text unchanged, images by colour, others by kind."""
    return [
        one["value"] if one["kind"] == "text" else int(one["value"][0, 0, 0]) if one["kind"] == "image" else one["kind"]
        for one in document["segments"]
    ]


def made(**settings):
    return [short(document) for document in DATA.parse(settings).documents("train")]


@pytest.mark.parametrize("streaming", [False, True])
def test_default_layouts_have_media_and_text_in_both_orders(tmp_path, streaming):
    found = made(**stamps(tmp_path), streaming=streaming)
    assert len(found) == 40
    orders = Counter(tuple(type(one) for one in document) for document in found)
    assert orders[(int, str)] > 8 and orders[(str, int)] > 8  # rows with a sound also contain "audio"
    assert {"thing 1", 1} == set(found[1])


def test_layouts_are_weighted_and_require_their_values(tmp_path):
    settings = stamps(tmp_path) | {"pieces": PIECES}
    found = made(**settings, layouts={"image en|fr": 3, "en|fr en|fr": 1, "sound image en": 0})
    texts = [document for document in found if isinstance(document[0], str)]
    assert 2 <= len(texts) < 25
    for document in texts:  # a translation is always into the other language
        (a, b) = document
        assert {a.split(":")[0].strip(), b.split(":")[0].strip()} == {"English", "Français"}
    french = [document for document in found if isinstance(document[0], int) and document[1].startswith("F")]
    assert all(document[0] % 2 and document[1] == f"Français : chose {document[0]}." for document in french)
    assert 3 < len(french) < 20
    with pytest.raises(ConfigError, match=r"'sond' is not known. Did you mean 'sound'"):
        made(**settings, layouts=["sond image"])
    with pytest.raises(ConfigError, match="no row of the train split"):
        made(**settings | {"where": {"id": "s1"}}, layouts=["sound image"])


def test_rows_without_a_possible_layout_are_left_out(tmp_path):
    settings = stamps(tmp_path) | {"pieces": PIECES, "max_skipped_rate": 0.0}
    part = DATA.parse(settings | {"layouts": ["sound image", "image sound"]})
    documents = part.documents("train")
    assert len(documents) == 10 and not documents.skipped.reasons
    assert [document["key"] for document in documents] == [str(i) for i in range(0, 40, 4)]
    with pytest.raises(Exception, match="unreadable"):  # a stream only notices while reading
        list(DATA.parse(settings | {"layouts": ["sound image"], "streaming": True}).documents("train"))


def test_documents_depend_on_the_epoch_only(tmp_path):
    part = DATA.parse(stamps(tmp_path) | {"pieces": PIECES, "layouts": ["image en", "en image"]})
    first, again, other = (list(map(short, part.documents("train", seed=seed))) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(map(len, first)) == sorted(map(len, other))


def test_fixed_documents_for_evaluation(tmp_path):
    part = DATA.parse(stamps(tmp_path) | {"pieces": PIECES, "layouts": ["image en|fr", "sound image"]})
    rows = part.rows("train")
    assert part.possible(rows[0]) == ["image en", "sound image"]
    assert part.possible(rows[1]) == ["image en", "image fr"]
    assert short(part.make(rows[1], "fr image")) == ["Français : chose 1.", 1]
    assert short(part.make(rows[3], "image")) == [3]
    with pytest.raises(Unreadable, match="it lacks a value for 'fr image'"):
        part.make(rows[0], "fr image")
    with pytest.raises(ValueError, match="'de' is not known"):
        part.make(rows[0], "de image")


def test_speech_and_clips(tmp_path):
    for column, feature, data in (("audio", datasets.Audio(), wav(tone(0.1))), ("video", datasets.Video(), film(5))):
        folder = tmp_path / column
        folder.mkdir()
        columns = {column: [data] * 12, "category": ["c"] * 12, "text": [f"t{i}" for i in range(12)]}
        parquet(folder / "train.parquet", columns, **{column: feature})
        found = made(kind="records", source=str(folder))
        assert [set(document) for document in found] == [{column, f"t{i}"} for i in range(12)]
        assert 2 < sum(document[0] == column for document in found) < 10
    part = DATA.parse({"kind": "records", "source": str(tmp_path / "video"), "num_frames": 3})
    document = part.make(part.rows("train")[0], "video text")
    assert document["segments"][0]["value"].shape == (3, 3, 32, 32)


def test_series_and_the_names_of_their_classes(tmp_path):
    series = [[[float(i), 1.0], [2.0, 3.0]] for i in range(30)]
    channels = datasets.List(datasets.List(datasets.Value("float32")))
    features = datasets.Features({"series": channels, "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"series": series, "label": [i % 2 for i in range(30)]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    layouts = ["series", "series label", "label series"]
    found = made(kind="records", source=str(tmp_path), layouts=layouts)
    assert set(map(tuple, found)) == {("series",), ("series", "a"), ("a", "series"), ("series", "b"), ("b", "series")}
    part = DATA.parse({"kind": "records", "source": str(tmp_path)})
    document = part.make(part.rows("train")[7], "series label")
    assert document["segments"][0]["value"].tolist() == [[7.0, 1.0], [2.0, 3.0]]
    assert document["segments"][1]["value"] == "b"


def test_prompts_format_texts(tmp_path):
    rows = [{"say": ["hello", "hi"], "who": "Ann", "year": 1999, "points": [1, 2]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pieces = {
        "say": {"kind": "text", "prompts": ["{who} in {year}: {text}"]},
        "year": "text",
        "ask": {"kind": "text", "prompts": ["When?"], "loss": False},
        "points": "points",
    }
    settings = {"kind": "records", "source": str(tmp_path), "pieces": pieces, "own_kinds": ["points"]}
    part = DATA.parse(settings | {"layouts": ["say ask year points"]})
    drawn = {short(next(iter(part.documents("train", seed=seed))))[0] for seed in range(20)}
    assert drawn == {"Ann in 1999: hello", "Ann in 1999: hi"}
    (document,) = list(part.documents("train"))
    assert [segment["loss"] for segment in document["segments"]] == [True, False, True, True]
    assert [segment["value"] for segment in document["segments"][1:]] == ["When?", "1999", [1, 2]]
    with pytest.raises(ConfigError, match=r"pieces.points.kind: 'points' is not known"):
        DATA.parse(settings | {"own_kinds": []})
    with pytest.raises(ConfigError, match="give the kind of each column"):
        DATA.parse({"kind": "records", "source": str(tmp_path)}).rows("train")


def test_broken_lines_are_reported_and_incomplete_ones_left_out(tmp_path):
    lines = ['{"a": "x", "b": "y"}', "no json", '{"a": "x"}', '{"a": "x", "b": ""}', '{"a": "x", "b": null}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    settings = {"kind": "records", "source": str(tmp_path), "pieces": {"a": "text", "b": "text"}}
    documents = DATA.parse(settings | {"layouts": ["a b"], "max_skipped_rate": 1.0}).documents("train")
    assert list(map(short, documents)) == [["x", "y"]]
    assert [reason[:8] for reason in documents.skipped.reasons.values()] == ["not JSON"]


def test_tables_are_joined(tmp_path):
    stamps(tmp_path)
    spoken = tmp_path / "spoken"
    spoken.mkdir()
    ids = ["s3", "s4", "none", "s3"]
    rows = [{"id": name, "speech": f"{number}.wav", "words": f"w{number}"} for number, name in enumerate(ids)]
    (spoken / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(4):
        (spoken / f"{number}.wav").write_bytes(wav(tone(0.01 * (number + 1))))
    settings = {
        "kind": "records",
        "source": str(spoken),
        "joins": {"stamps": {"source": str(tmp_path / "train.parquet"), "by": "id"}},
        "pieces": {"image": {"kind": "image", "column": "stamps.image"}, "speech": "audio", "words": "text"},
        "layouts": ["image speech words"],
    }
    part = DATA.parse(settings)
    documents = list(part.documents("train"))
    assert list(map(short, documents)) == [[3, "audio", "w0"], [4, "audio", "w1"], [3, "audio", "w3"]]
    assert [len(document["segments"][1]["value"]) for document in documents] == [160, 320, 640]
    # Also the other way round: paths in a joined row are relative to its own folder.
    turned = settings | {
        "source": str(tmp_path / "train.parquet"),
        "joins": {"said": {"source": str(spoken), "by": "id"}},
        "pieces": {"image": "image", "speech": {"kind": "audio", "column": "said.speech"}},
        "layouts": ["image speech"],
    }
    assert made(**turned) == [[3, "audio"], [4, "audio"]]
    with pytest.raises(ConfigError, match=r"data.joins.said.by: 'ids' is not known"):
        made(**turned | {"joins": {"said": {"source": str(spoken), "by": "ids"}}})
    with pytest.raises(ConfigError, match="streaming=false"):
        made(**turned, streaming=True)


def test_wrong_columns_are_reported(tmp_path):
    settings = stamps(tmp_path)
    with pytest.raises(ConfigError, match=r"data.pieces.x.column: 'capton' is not known. Did you mean 'caption'"):
        made(**settings, pieces={"x": {"kind": "text", "column": "capton"}})
    with pytest.raises(ConfigError, match="must not contain a space or"):
        made(**settings, pieces={"a b": "text"})
    with pytest.raises(ConfigError, match=r"'imgae' is not known. Did you mean 'image'"):
        made(**settings, pieces={"image": "imgae"})
    with pytest.raises(ConfigError, match="'text' is not known"):
        made(**settings, layouts=["image text"])


def test_choices_and_draws_of_layouts():
    assert choices("a b|c d", lambda name: True) == [["a", "b", "d"], ["a", "c", "d"]]
    assert choices("a b|c", {"a", "c"}.__contains__) == [["a", "c"]]
    assert choices("a b|c", {"a"}.__contains__) == []
    assert choices("a|b a|b", lambda name: True) == [["a", "b"], ["b", "a"]]
    assert choices("a a", lambda name: True) == [["a", "a"]]
    layouts = {"a": 3.0, "b": 1.0, "c": 5.0, "d": 0.0}
    drawn = Counter(drawn_layout(layouts, "abd".__contains__, Draws(seed))[0] for seed in range(4000))
    assert set(drawn) == {"a", "b"} and 0.72 < drawn["a"] / 4000 < 0.78
    assert drawn_layout(layouts, "d".__contains__, Draws(0)) is None


def test_settings_round_trip_and_make_batches(tmp_path):
    settings = stamps(tmp_path) | {"pieces": PIECES, "layouts": ["image en"], "num_workers": 0}
    part = DATA.parse(settings)
    assert isinstance(part, Records) and DATA.parse(part.model_dump()) == part
    options = {"encode": encode_document, "max_length": 64}
    batch = next(iter(part.train_loader(Loading(2), **options)))
    assert batch["input_ids"].shape == (2, 64) and int(batch["document_ids"].max()) > 1
    assert batch["pixel_values"].dtype == torch.float32
