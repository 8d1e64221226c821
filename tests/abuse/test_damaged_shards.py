"""Damaged data files: an unreadable row is skipped and counted; an unreadable file is a one-line error with its name
and the reason. The same with and without streaming."""

import gzip
import io
import json
import os
import socket
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.origins import find_origin, find_table
from nextembed.errors import ConfigError, DataError
from nextembed.models.omni.settings import OmniParts

STREAMING = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (16, 16), os.urandom(768)).save(file, "PNG")
    return file.getvalue()


def parquet(file: Path, num: int = 20, texts: pa.Array | None = None) -> bytes:
    images = [{"bytes": png(i), "path": None} for i in range(num)]
    columns = {"image": images, "text": [f"text {i}" for i in range(num)] if texts is None else texts}
    pq.write_table(pa.table(columns), file, row_group_size=5, compression="zstd")
    return file.read_bytes()


def no_utf8(num: int, bad: int) -> pa.Array:
    """A text column with invalid UTF-8."""
    values = pa.array([b"a \xff" if i == bad else b"text" for i in range(num)], pa.binary())
    return pa.Array.from_buffers(pa.string(), num, values.buffers())


def tar(num: int = 20) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(num):
            for name, data in ((f"{i:03d}.png", png(i)), (f"{i:03d}.txt", b"text")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def flipped(data: bytes, at: int, num: int = 40) -> bytes:
    return data[:at] + bytes(255 - byte for byte in data[at : at + num]) + data[at + num :]


def lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" if isinstance(row, dict) else row + b"\n" for row in rows)


def header_flipped(data: bytes) -> bytes:
    at = data.index(b"010.png")
    return flipped(data, at + 100, 60)


# kind of file -> (suffix, intact content, {damage: function})
PARQUET = {
    "truncated": lambda data: data[: len(data) // 2],
    "flipped pages": lambda data: flipped(data, len(data) // 2, 2000),
    "flipped footer": lambda data: flipped(data, len(data) - 60),
    "no bytes": lambda data: b"",
    "other content": lambda data: b"<html>not found</html>",
}
TAR = {
    "truncated": lambda data: data[: len(data) // 2 + 100],
    "broken member": header_flipped,
    "no bytes": lambda data: b"",
    "other content": lambda data: b"<html>not found</html>" * 50,
    "truncated gzip": lambda data: gzip.compress(data)[:3000],
}
CSV = {
    "too many fields": lambda data: data.replace(b"text 9\n", b"text 9,and,more\n"),
    "open quote": lambda data: data.replace(b"text 9\n", b'"text 9\n'),
    "no bytes": lambda data: b"",
    "other content": lambda data: bytes(range(256)) * 20,
}


def image_message(part) -> str:
    """The error of a run that reads an epoch."""
    with pytest.raises((ConfigError, DataError)) as caught:
        loader = part.train_loader(Loading(4), image_size=8, num_channels=3, num_latents=5)
        for _, _batch in zip(range(20), loader):
            pass
    return told(caught.value)


def told(err: Exception) -> str:
    text = str(err)
    assert "\n" not in text and "Traceback" not in text and "unexpected error" not in text and len(text) < 600
    return f"{type(err).__name__}: {text}"


def documents_message(part, encode) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        for place, _, _ in encoded(part, encode):
            if place.epoch:
                break
    return told(caught.value)


def encoded(part, encode, skipped=None):
    return part.train_loader(Loading(1, skipped_path=skipped), encode=encode, max_length=400).stream.documents(0)


@pytest.fixture(scope="module")
def encode():
    return OmniParts(modalities={"text": {}, "image": {"image_size": 8, "patch_size": 4}}).processor().encode_document


def shards(folder: Path, suffix: str, whole: bytes, broken: bytes) -> Path:
    """A folder of four files; the third is broken."""
    folder.mkdir()
    for number in range(4):
        (folder / f"part-{number}{suffix}").write_bytes(broken if number == 2 else whole)
    return folder / f"part-2{suffix}"


@pytest.mark.parametrize(("kind", "damage"), [("parquet", one) for one in PARQUET] + [("tar", one) for one in TAR])
def test_an_error_names_a_broken_file_of_images(kind, damage, tmp_path, capfd):
    whole = parquet(tmp_path / "whole") if kind == "parquet" else tar()
    file = shards(tmp_path / "data", f".{kind}", whole, (PARQUET if kind == "parquet" else TAR)[damage](whole))
    found = []
    for streaming in (False, True):
        part = DATA.parse({"kind": "images", "source": str(file.parent), "streaming": streaming, "num_workers": 0})
        found.append(image_message(part))
    assert found[0].startswith(f"DamagedFile: data.source: cannot read '{file}' as ")
    assert found[0] == found[1]
    assert not [line for line in capfd.readouterr().err.splitlines() if "Creating" not in line]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("parquet", one) for one in PARQUET] + [("tar", one) for one in TAR] + [("csv", o) for o in CSV],
)
def test_an_error_names_a_broken_file_of_documents(kind, damage, tmp_path, encode, capfd):
    if kind == "csv":
        whole, damages = b"text\n" + b"".join(b"text %d\n" % i for i in range(20)), CSV
    else:
        whole, damages = (parquet(tmp_path / "whole"), PARQUET) if kind == "parquet" else (tar(), TAR)
    file = shards(tmp_path / "data", f".{kind}", whole, damages[damage](whole))
    column = {"text_column": "txt" if kind == "tar" else "text"}
    found = []
    for streaming in (False, True):
        values = {
            "kind": "text",
            "source": str(file.parent),
            "streaming": streaming,
            "num_readers": 1,
            "num_workers": 0,
        }
        found.append(documents_message(DATA.parse(values | column), encode))
    assert str(file) in found[0] and found[0] == found[1]
    assert not [line for line in capfd.readouterr().err.splitlines() if "Creating" not in line]


@STREAMING
def test_text_that_is_not_utf8_is_an_unreadable_row(streaming, tmp_path, encode):
    texts = no_utf8(20, 7)
    parquet(tmp_path / "a.parquet", texts=texts)
    (tmp_path / "a.jsonl").write_bytes(
        lines([b'{"text": "a \xff"}' if i == 7 else {"text": "text"} for i in range(20)])
    )
    (tmp_path / "a.txt").write_bytes(b"".join(b"a \xff\n" if i == 7 else b"text\n" for i in range(20)))
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"".join(b"a \xff\n" if i == 7 else b"text\n" for i in range(20)))
    for suffix in ("parquet", "jsonl", "txt", "csv"):
        values = {
            "kind": "text",
            "source": str(tmp_path / f"a.{suffix}"),
            "text_column": "text",
            "streaming": streaming,
        }
        part = DATA.parse(values | {"num_readers": 1, "num_workers": 0, "max_skipped_rate": 0.05, "shuffle_buffer": 1})
        skipped = tmp_path / f"skipped.{suffix}"
        for place, _, _ in encoded(part, encode, skipped):
            if place.epoch == 2:
                break
        (line,) = map(json.loads, skipped.read_text().splitlines())
        assert line["key"] == (f"a.{suffix}:7" if streaming else "7") and "utf-8" in line["reason"].lower()


@STREAMING
def test_a_broken_line_of_json_is_an_unreadable_row(streaming, tmp_path, encode):
    (tmp_path / "a.jsonl").write_bytes(lines([b'{"text": "a' if i == 7 else {"text": "text"} for i in range(20)]))
    values = {"kind": "text", "source": str(tmp_path / "a.jsonl"), "streaming": streaming, "max_skipped_rate": 0.05}
    part = DATA.parse(values | {"num_readers": 1, "num_workers": 0})
    assert next(place for place, _, _ in encoded(part, encode) if place.epoch == 2)
    with pytest.raises(DataError, match=r"1 of 20 documents are unreadable .*: not JSON: "):
        for place, _, _ in encoded(part.model_copy(update={"max_skipped_rate": 0.01}), encode):
            assert place.epoch < 2


@STREAMING
def test_rows_without_an_image_are_counted_separately(streaming, tmp_path):
    """A quarter of the rows has no image; identical rows are counted separately."""
    images = [{"bytes": None if i % 4 == 0 else png(i), "path": None} for i in range(400)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    part = DATA.parse(
        {"kind": "images", "source": str(tmp_path / "a.parquet"), "streaming": streaming, "num_workers": 0}
    )
    assert " images are unreadable" in image_message(part)
    part = part.model_copy(update={"max_skipped_rate": 0.25})
    loading = Loading(100, skipped_path=tmp_path / "skipped.jsonl")
    loader = part.train_loader(loading, image_size=8, num_channels=3, num_latents=5)
    for _, _batch in zip(range(13), loader):
        pass
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 100


METADATA = {
    "broken line": (b'{"file_name": "3.png", "text', "line 4 is not JSON"),
    "no object": (b"5", "line 4 is not JSON"),
    "not UTF-8": (b'{"file_name": "3.png", "text": "\xff"}', "UTF-8"),
    "other type": (b'{"file_name": "3.png", "text": 5}', "column"),
}


@pytest.mark.parametrize("damage", METADATA)
@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_a_broken_row_of_metadata_is_reported(kind, damage, tmp_path, encode, capfd):
    line, words = METADATA[damage]
    rows = [line if i == 3 else {"file_name": f"{i}.png", "text": "a"} for i in range(20)]
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / "data" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "data" / "metadata.jsonl").write_bytes(lines(rows))
    found = []
    for streaming in (False, True):
        values = {"kind": kind, "source": str(tmp_path / "data"), "streaming": streaming, "num_workers": 0}
        part = DATA.parse(values | ({"num_readers": 1} if kind == "pairs" else {}))
        found.append(image_message(part) if kind == "images" else documents_message(part, encode))
    assert found[0] == found[1] and words.lower() in found[0].lower()
    assert found[0].startswith(f"DamagedFile: data.source: cannot read '{tmp_path / 'data' / 'metadata.jsonl'}' as ")
    assert not capfd.readouterr().err


@STREAMING
@pytest.mark.parametrize("row", [{"file_name": "gone.png", "text": "a"}, {"file_name": None, "text": "a"}])
def test_metadata_of_a_missing_file_is_an_unreadable_row(row, streaming, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / "data" / f"{i}.png").write_bytes(png(i))
    rows = [row if i == 3 else {"file_name": f"{i}.png", "text": "a"} for i in range(20)]
    (tmp_path / "data" / "metadata.jsonl").write_bytes(lines(rows))
    values = {"kind": "images", "source": str(tmp_path / "data"), "streaming": streaming, "num_workers": 0}
    part = DATA.parse({**values, "max_skipped_rate": 0.05})
    loading = Loading(4, skipped_path=tmp_path / "skipped.jsonl")
    loader = part.train_loader(loading, image_size=8, num_channels=3, num_latents=5)
    for _, _batch in zip(range(20), loader):
        pass
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 1


def test_devices_pipes_and_sockets_are_one_line_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.tar"))
    names = [
        "/dev/full",
        "/dev/zero",
        str(tmp_path / "pipe.parquet"),
        str(tmp_path / "socket.tar"),
        str(tmp_path / "*.p*"),
    ]
    for name in names:
        for find in (find_origin, find_table):
            with pytest.raises(ConfigError, match=r"^data.source: .*(is not a file or folder|no file fits)"):
                find(name)
    for setting in ("label_file", "class_file"):
        kind = "images" if setting == "label_file" else "segmentation"
        for device in ("/dev/zero", str(tmp_path / "pipe.parquet"), str(tmp_path)):
            part = DATA.parse({"kind": kind, "source": "emoji", setting: device})
            with pytest.raises(ConfigError, match=f"^data.{setting}: {device} is not a file"):
                part.class_names()
    server.close()


@STREAMING
@pytest.mark.parametrize("value", [1, "a", None, {"path": 1}])
def test_rows_are_selected_only_by_numbers_or_text(value, streaming, tmp_path):
    parquet(tmp_path / "a.parquet")
    for kind in ("images", "text"):
        values = {
            "kind": kind,
            "source": str(tmp_path / "a.parquet"),
            "where": {"image": value},
            "streaming": streaming,
        }
        with pytest.raises(
            ConfigError, match=r"^data.where: column 'image'.*[:;] data.where selects rows by numbers or text"
        ):
            DATA.parse(values).rows("train")
