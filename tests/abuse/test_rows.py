"""Malformed rows are skipped and listed; they never end a run and are never used by mistake."""

import base64
import io
import json
import re
import sys
import wave
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.code import allow_code, trusting
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.packing import UNREADABLE
from nextembed.errors import ConfigError, DataError
from nextembed.models.omni.settings import OmniParts
from nextembed.recipes import load

DEEP = "[" * 20_000
HALF = "\\ud83d"  # as written in JSON
EVERY = {"text": {}, "image": {"image_size": 8, "patch_size": 4}, "series": {}, "audio": {}, "video": {}}


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def wav(num_samples: int, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(np.zeros(num_samples, "<i2").tobytes())
    data = file.getvalue()
    return data[:24] + rate.to_bytes(4, "little") + data[28:]


def coded(data: bytes) -> str:
    return json.dumps({"bytes": base64.b64encode(data).decode()})


def nan_wav() -> bytes:
    """Audio of 32-bit floats that are NaN."""
    samples = np.full(1600, np.nan, "<f4").tobytes()
    form = b"fmt \x10\0\0\0\3\0\1\0" + (16_000).to_bytes(4, "little") + (64_000).to_bytes(4, "little") + b"\4\0\x20\0"
    body = b"WAVE" + form + b"data" + len(samples).to_bytes(4, "little") + samples
    return b"RIFF" + len(body).to_bytes(4, "little") + body


# Lines that are never valid rows.
NO_ROWS = ["{", DEEP, '{"x":' * 50_000, "9" * 10_000, '{"x": ' + "9" * 10_000 + "}", "[1, 2]", "null", "5", "NaN",
           '"text"', f'"{HALF}"', "{}", '{"other": 1}', "\ufeff{", "{'text': 'a'}"]  # fmt: skip
BAD_TEXTS = ["null", "true", "{}", "[]", "[null]", "[5]", '""', '"  "', "NaN", "Infinity", '{"text": "a"}', '[["a"]]',
             f'"{HALF}"', f'"before {HALF} after"', '"\\udc80"', f'["{HALF}"]']  # fmt: skip
BAD_FILES = ["null", "5", "true", "{}", "[]", '""', '"."', '"nothing.png"', '"../outside.png"', '"/etc/passwd"',
             '"http://localhost:1/a.png"', '"\\u0000"', f'"{HALF}.png"', '"' + "a" * 5000 + '"', '["a.png"]',
             '{"path": null}', '{"bytes": "!"}', '{"bytes": "bm90aGluZw=="}', '{"bytes": 5}', '{"bytes": []}',
             '{"path": 5}', '"junk.png"', '"empty.png"']  # fmt: skip
SEGMENTS = [
    "null", '"a"', "{}", "[]", "[null]", "[5]", "[{}]", '[{"text": null}]', '[{"text": 5}]', '[{"text": ["a"]}]',
    f'[{{"text": "{HALF}"}}]', '[{"nothing": 1}]', '[{"type": 5, "value": "a"}]', f'[{{"type": "{HALF}", "value": 1}}]',
    '[{"text": "a", "image": "a.png"}]', '[{"text": "a", "loss": "yes"}]', '[{"image": "nothing.png"}]',
    '[{"image": "a.png", "order": "nowhere"}]', '[{"image": "a.png", "order": ["raster"]}]', '[{"series": "abc"}]',
    '[{"series": [1, NaN]}]', '[{"series": [1, null]}]', '[{"series": [[1, 2], [3]]}]', '[{"series": [[[[1]]]]}]',
    '[{"series": []}]', '[{"series": [[]]}]', '[{"series": ["1", "2"]}]', '[{"series": [1, "2"]}]',
    '[{"series": [1e300]}]', '[{"series": [[1, 2], [3, 4]]}]', '[{"series": {"a": 1}}]', '[{"series": 5}]',
    f'[{{"series": "{DEEP}"}}]', f'[{{"series": [{"9" * 400}]}}]', '[{"audio": "nothing.wav"}]', '[{"audio": "a.png"}]',
    f'[{{"audio": {coded(wav(0))}}}]', f'[{{"audio": {coded(nan_wav())}}}]', f'[{{"audio": {coded(wav(1600)[:20])}}}]',
    f'[{{"audio": {coded(wav(1600, 0))}}}]', '[{"video": "a.png"}]', '[{"video": "junk.png"}]', '[{"video": 5}]',
    '[{"audio": [0.1, 0.2]}]',
]  # fmt: skip
INTERLEAVED = [f'{{"segments": {value}}}' for value in SEGMENTS] + [
    '{"images": [null], "texts": []}', '{"images": ["a.png"], "texts": ["a"]}', '{"images": "a.png", "texts": ["a"]}',
    '{"images": [null], "texts": [null]}', '{"images": [null], "texts": [5]}', '{"images": [5], "texts": [null]}',
    f'{{"images": [null], "texts": ["{HALF}"]}}', '{"images": [], "texts": []}',
    '{"text_list": ["a", null], "image_info": []}', '{"text_list": ["a", 5], "image_info": []}',
    '{"text_list": "a", "image_info": []}', '{"text_list": ["a"], "image_info": {}}',
    '{"text_list": ["a"], "image_info": [5]}', '{"text_list": ["a"], "image_info": [{"image_name": "a.png"}]}',
    *(f'{{"text_list": ["a"], "image_info": [{{"image_name": "a.png", "matched_text_index": {index}}}]}}'
      for index in ("-1", "99", "true", '"0"', "0.5", "null", "[]", "9" * 400)),
]  # fmt: skip
ASKED = '{"role": "user", "content": "who?"}'
MESSAGES = ["null", "5", "{}", "[]", "[5]", "[null]", f"[{ASKED}]", '[{"role": "user"}]', '[{"content": "a"}]',
            '[{"role": ["user"], "content": "a"}]', f'[{{"role": "{HALF}", "content": "a"}}]'] + [
    f'[{ASKED}, {{"role": "assistant", "content": {content}}}]'
    for content in ("null", "5", "{}", "[5]", '[{"type": "text"}]', '[{"type": "text", "text": null}]',
                    '[{"type": "text", "text": 5}]', '[{"type": "sound"}]', '[{"type": "image"}]', '"a <image> b"',
                    f'"{HALF}"', f'[{{"type": "text", "text": "{HALF}"}}]',
                    '[{"type": "image", "image": "nothing.png"}]', '[{"type": "image", "image": 5}]')
]  # fmt: skip
GOOD_TALK = f'{{"messages": [{ASKED}, {{"role": "assistant", "content": "a cat"}}]}}'

CASES = {
    "text": ({"text_column": "text"}, '{"text": "a cat %d"}', [f'{{"text": {v}}}' for v in BAD_TEXTS]),
    "text found": ({"kind": "text"}, '{"text": "a cat %d"}', ['{"text": null}', '{"text": 5}']),
    "pairs": (
        {},
        '{"image": "a.png", "text": "a cat %d"}',
        [f'{{"image": "a.png", "text": {value}}}' for value in [*BAD_TEXTS, "5"]]
        + [f'{{"image": {value}, "text": "a cat"}}' for value in BAD_FILES],
    ),
    "records": (
        {"pieces": {"image": "image", "text": "text"}, "layouts": ["image text"]},
        '{"image": "a.png", "text": "a cat %d"}',
        [f'{{"image": "a.png", "text": {value}}}' for value in sorted({*BAD_TEXTS} - {"true", "[5]"})]  # text here
        + [f'{{"image": {value}, "text": "a cat"}}' for value in BAD_FILES],
    ),
    "interleaved": ({}, '{"segments": [{"text": "a cat %d"}, {"image": "a.png"}]}', INTERLEAVED),
    "messages": ({}, GOOD_TALK.replace("who", "who %d"),
                 [f'{{"messages": {value}}}' for value in MESSAGES]
                 + [f'{{"images": ["a.png"], {GOOD_TALK[1:]}', f'{{"image": 5, {GOOD_TALK[1:]}']),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoders():
    omni = OmniParts(modalities=EVERY).processor()
    spelled = OmniParts(modalities=EVERY, tokenizer="bundled").processor()
    emu = load("emu_emoji_tiny").model.processor()
    return {"bytes": omni.encode_document, "omni": spelled.encode_document, "emu": emu.encode_document}


def outcomes(part, encode, skipped=None):
    """The first epoch of a run: (outcomes, {key: reason})."""
    loader = part.train_loader(Loading(1, skipped_path=skipped), encode=encode, max_length=400)
    found = []
    for place, outcome, encoded in loader.stream.documents(0):
        if place.epoch:
            break
        found.append((outcome, encoded))
    return found, loader.stream.log.reasons


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_an_unreadable_row_is_skipped_and_listed(case, streaming, tmp_path, encoders, capfd):
    settings, good, bad = CASES[case]
    bad = [*NO_ROWS, *bad]
    lines = [line for number, row in enumerate(bad) for line in (good.replace("%d", str(number)), row)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, data in (("a.png", png(9)), ("junk.png", b"junk"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
    (tmp_path.parent / "outside.png").write_bytes(png(1))
    values = {"kind": case, "source": str(tmp_path / "rows.jsonl"), "max_skipped_rate": 1.0, "streaming": streaming}
    part = DATA.parse(values | {"num_readers": 1, "num_workers": 0, "shuffle_buffer": 1} | settings)
    for name, encode in encoders.items():
        if name == "emu" and case == "interleaved":
            continue  # Emu supports neither audio nor series
        found, reasons = outcomes(part, encode, tmp_path / f"{name}.jsonl")
        read = [one for one in found if one[0] != UNREADABLE]
        left_out = len(lines) - len(found)  # rows without a layout give no documents, but are also listed
        assert len(read) == len(bad) and not (left_out and (case != "records" or streaming))
        if not streaming:
            odd = {key for key in reasons if not int(key.removeprefix("row ")) % 2}
            assert not odd and len(reasons) == len(bad)
        for reason in reasons.values():
            assert reason and "\n" not in reason and len(reason) < 400
            assert not re.search(r"^\w*Error\b", reason), reason
        named = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert {line["key"]: line["reason"] for line in named} == reasons
    documents = part.documents("train")
    assert len(bad) <= len(list(documents)) <= len(lines)
    assert not capfd.readouterr().err


def test_columns_of_another_type_in_parquet(tmp_path, encoders):
    """Null, empty and broken values in columns with a fixed type."""
    shown = {"bytes": png(3), "path": None}
    rows = [{"image": shown, "name": f"cat {i}", "tags": ["a"], "group": "pets"} for i in range(12)]
    rows[1]["image"], rows[2]["image"] = None, {"bytes": b"junk", "path": None}
    rows[3]["image"], rows[4]["name"], rows[5]["name"] = {"bytes": b"", "path": None}, None, " "
    rows[6]["tags"], rows[7]["group"] = [None, "b"], None
    rows[8]["tags"] = []
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    for kind, wanted in (("tags", {1, 2, 3, 6}), ("question", {1, 2, 3, 7}), ("caption", {1, 2, 3, 4, 5})):
        weights = {"caption": 0, "paint": 0, "tags": 0, "question": 0, "context": 0} | {kind: 1}
        part = DATA.parse({"kind": "emoji_documents", "source": str(tmp_path), "kinds": weights, "num_readers": 1,
                           "max_skipped_rate": 1.0, "num_workers": 0})  # fmt: skip
        assert {int(key.removeprefix("row ")) for key in outcomes(part, encoders["omni"])[1]} == wanted


NAMES = ["broken", "key", "folder", "error", "others", "number", "pixels", "__key__", "__url__", "text", "image",
         "images", "split", "label", "label of label_file", "seed", "kind", "path", "bytes", "file_name", "row",
         "segments", "messages", "a.b", "values", "items", "but", "get"]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "json"])
@pytest.mark.parametrize("name", NAMES)
def test_a_column_may_have_any_name(name, form, streaming, tmp_path):
    rows = [{name: f"cat {i}", "more": i} for i in range(4)]
    file = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows))
    common = {"source": str(file), "streaming": streaming, "max_skipped_rate": 0.0}
    for part in ({"kind": "text", "text_column": name},
                 {"kind": "records", "pieces": {"caption": {"kind": "text", "column": name}}}):  # fmt: skip
        documents = list(DATA.parse(common | part).documents("train"))
        assert [one["segments"][0]["value"] for one in documents] == [f"cat {i}" for i in range(4)]
        assert len({one["key"] for one in documents}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_emoji_may_have_any_name(name, tmp_path):
    columns = {"image": {"bytes": png(3), "path": None}, "name": "cat", "tags": ["a"], "group": "pets"}
    rows = [{**columns, "name": f"cat {i}"} | ({} if name in columns else {name: "x"}) for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    part = DATA.parse({"kind": "emoji_documents", "source": str(tmp_path), "max_skipped_rate": 0.0})
    assert len({one["key"] for one in part.documents("train")}) == 4
    again = part.row_sources("train")[0]
    assert [again.part.picture(again.rows[0], 0)["value"][0, 0, 0] for _ in range(2)] == [3, 3]


def test_a_joined_table_needs_a_unique_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": [1], "text": "a"}\n{"id": "x", "text": "b"}\n')
    values = {"kind": "records", "source": str(tmp_path / "a.jsonl"), "pieces": {"text": "text", "more": {
        "kind": "text", "column": "other.text"}}, "layouts": ["text more"]}  # fmt: skip
    joined = {"joins": {"other": {"source": str(tmp_path / "a.jsonl"), "by": "id"}}}
    assert len(list(DATA.parse(values | joined).documents("train"))) == 1  # a list matches no row
    pq.write_table(pa.table({"id": ["x"], "text": ["a"], "other": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="'other' is already a column of the table"):
        DATA.parse(values | joined | {"source": str(tmp_path / "a.parquet")}).rows("train")


OWN = """
from nextembed import DocumentPart, Unreadable

class Own(DocumentPart):
    fault: str = ""

    def rows(self, split):
        return [{"name": f"n{i}"} for i in range(20)]

    def document(self, row, seed):
        if row["name"] == "n7":
            {
                "attribute": lambda: row.name,
                "name": lambda: missing,
                "type": lambda: len(5),
                "key": lambda: row["caption"],
                "value": lambda: int("x"),
                "unreadable": lambda: (_ for _ in ()).throw(Unreadable("too dark")),
                "inside": lambda: self.image(5),
                "pair": lambda: None,
            }[self.fault]()
        if self.fault == "nothing":
            return None
        name = chr(0xD83D) if self.fault == "pair" and row["name"] == "n7" else row["name"]
        return {"key": row["name"], "segments": [{"kind": "text", "value": name}]}
"""


FAILING = """
from nextembed import DocumentPart

class Rows:
    def read(self, seed, epoch, reader, num_readers):
        yield {"name": "a"}
        raise OSError("the line is dead")

class Own(DocumentPart):
    def rows(self, split):
        return Rows()

    def document(self, row, seed):
        return {"key": "a", "segments": [{"kind": "text", "value": "a"}]}
"""


def test_a_failing_custom_stream_is_reported_with_its_line(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "failing_rows.py").write_text(FAILING)
    allow_code(tmp_path / "failing_rows.py")
    part = DATA.parse({"kind": f"{tmp_path / 'failing_rows.py'}:Own", "num_workers": 0})
    with pytest.raises(DataError, match=r"cannot be read any further: the line is dead \(.*rows\.py, line 7\)"):
        list(part.train_loader(Loading(1), encode=encoders["bytes"], max_length=64))


def test_a_custom_kind_cannot_be_a_reserved_key():
    with pytest.raises(ConfigError, match="own_kinds: 'loss' is a reserved key"):
        DATA.parse({"kind": "interleaved", "source": "x", "own_kinds": ["loss"]})


@pytest.fixture
def own_file(tmp_path):
    file = tmp_path / "own_rows.py"
    file.write_text(OWN)
    with trusting(True):
        yield f"{file}:Own"
    sys.modules.pop("own_rows", None)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("key", r"^KeyError: 'caption' \(.*own_rows\.py, line 16\)$"),
        ("value", r"^invalid literal for int\(\) with base 10: 'x' \(.*own_rows\.py, line 17\)$"),
        ("unreadable", "^too dark$"),
        ("inside", "^not an image: int$"),
        ("pair", "half a surrogate pair"),
    ],
)
def test_a_row_that_custom_code_cannot_read(fault, reason, own_file, encoders):
    part = DATA.parse({"kind": own_file, "fault": fault, "max_skipped_rate": 0.5, "num_readers": 1})
    found, reasons = outcomes(part, encoders["bytes"])
    assert len(found) == 20 and len(reasons) == 1 and re.search(reason, *reasons.values())
    assert len(list(part.documents("train"))) == 19


@pytest.mark.parametrize(
    ("fault", "line", "num_workers"),
    [("attribute", 13, 0), ("name", 14, 0), ("type", 15, 1), ("nothing", None, 0)],
)
def test_an_error_in_custom_code_is_one_line_with_its_location(fault, line, num_workers, own_file, encoders):
    part = DATA.parse({"kind": own_file, "fault": fault, "max_skipped_rate": 0.5, "num_workers": num_workers})
    loader = part.train_loader(Loading(1), encode=encoders["bytes"], max_length=64)
    wanted = rf"own_rows\.py, line {line}: .*Error: " if line else r"document\(\) of Own gives no \{'key'"
    with pytest.raises(DataError, match=wanted) as caught:
        for _, _ in zip(range(40), loader):
            pass
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=wanted):
        list(part.documents("train"))


def test_the_first_reasons_are_in_the_message_that_stops_a_run(tmp_path, encoders):
    Path(tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n' * 30 + '{"text": "a"}\n' * 30)
    part = DATA.parse({"kind": "text", "source": str(tmp_path / "a.jsonl"), "num_workers": 0})
    loader = part.train_loader(Loading(1), encode=encoders["emu"], max_length=64)
    with pytest.raises(DataError, match=r"documents are unreadable .*: text with half a surrogate pair"):
        for _, _ in zip(range(80), loader):
            pass
