"""Values from CSV, TSV, JSON lines and text files are exactly the characters of the file, for every reader."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextembed.core.config import DATA
from nextembed.data import kinds  # noqa: F401
from nextembed.data.labels import read_labels
from nextembed.data.lines import encoding_of, read_delimited, read_json_lines, read_lines, read_units
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.language.tables import read_table
from nextembed.inference.prompts import read_prompts
from nextembed.inference.signals import read_series

ODD = ["007", "1.0", "None", "NA", "null", "NaN", "10:30", "1e5", "true", "-0", "2024-01-02", "0x1F", "1_000"]


def texts(source, kind="text", **settings):
    """The texts of all documents, and the reasons for skipped ones."""
    part = DATA.parse({"kind": kind, "source": str(source), "max_skipped_rate": 1.0, **settings})
    found = part.documents("train")
    return [s["value"] for d in found for s in d["segments"] if s["kind"] == "text"], found.skipped.reasons


def written(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_cells_are_unchanged(tmp_path, suffix, streaming):
    file = written(tmp_path / f"a.{suffix}", "text\n" + "".join(f"{value}\n" for value in ODD))
    assert texts(file, streaming=streaming) == (ODD, {})


def test_numbers_beside_empty_cells(tmp_path):
    file = written(tmp_path / "a.csv", "n,text\n1,12\n2,\n3,7\n")
    assert texts(file) == (["12", "7"], {"1": "'text' is empty"})


def test_captions_of_digits(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    file = written(tmp_path / "x.csv", "file,caption\na.png,7\nb.png,012\n")
    assert texts(file, "pairs") == (["7", "012"], {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nhello, world\n", "line 2: 2 fields, but the first line names 1 columns"),
        ("file,text\na,b\n\nb,one, two\n", "line 4: 3 fields, but the first line names 2 columns"),
        ("text,n\nok,1\nhello,2,\n", "line 3: 3 fields"),
        ('text\n"one\ntwo"\nthree,four\n', "line 4: 2 fields"),
        ('text\nfine\n"never ends\nand on\n', "line 3: unexpected end of data"),
        ('text\n"a"b\n', "line 2: "),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_errors_name_their_line(tmp_path, content, message, streaming):
    file = written(tmp_path / "a.csv", content)
    with pytest.raises(DataError) as err:
        texts(file, streaming=streaming)
    assert f"{file}, {message}" in str(err.value)
    with pytest.raises(DataError) as err:
        list(read_delimited(file))
    assert message in str(err.value)


def test_a_row_that_ends_early_lacks_its_value(tmp_path):
    assert texts(written(tmp_path / "a.csv", "n,text\n1,a\n2\n3,c\n")) == (["a", "c"], {"1": "it has no 'text'"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    file = written(tmp_path / "a.csv", "text\r\nGröße 7\r\nend\r\n".encode(encoding))
    assert texts(file) == (["Größe 7", "end"], {})
    line = json.dumps({"text": "Größe"}, ensure_ascii=False)
    file = written(tmp_path / "a.jsonl", f"{line}\n{line}\n".encode(encoding))
    assert texts(file) == (["Größe", "Größe"], {})
    assert len(read_prompts(file)) == 2
    file = written(tmp_path / "b.txt", "Größe\n".encode(encoding))
    assert texts(file) == (["Größe"], {})


def test_latin_1_is_reported(tmp_path):
    file = written(tmp_path / "a.csv", "text\nGröße\nfine\n".encode("latin-1"))
    assert texts(file) == (["fine"], {"0": "text that is not UTF-8"})
    row = '{"text": "Größe"}\n'.encode("latin-1")
    assert texts(written(tmp_path / "a.jsonl", row + b'{"text": "fine"}\n')) == (
        ["fine"],
        {"0": "text that is not UTF-8"},
    )
    with pytest.raises(DataError, match=r"line 1: .*not UTF-8"):
        read_prompts(tmp_path / "a.jsonl")
    labels = written(tmp_path / "labels.csv", "file,label\na.png,cat\nb.png,größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="line 3: text that is not UTF-8; save the file as UTF-8"):
        read_labels(str(labels))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_only_at_line_feeds(tmp_path, mark):
    file = written(tmp_path / "a.jsonl", json.dumps({"text": f"a{mark}b", "question": "q"}, ensure_ascii=False))
    if mark in "\u2028\u2029\x85":  # the others are escaped in JSON
        assert texts(file) == ([f"a{mark}b"], {})
    assert [number for number, _ in read_json_lines(file)] == [1]
    assert len(read_table(file)) == len(read_prompts(file)) == 1
    assert list(read_lines(written(tmp_path / "a.txt", f"x{mark}y\r\nz"))) == [f"x{mark}y", "z"]
    assert texts(written(tmp_path / "b.csv", f"text\nx{mark}y\n"))[0] == [f"x{mark}y"]


def test_quoted_cells(tmp_path):
    file = written(tmp_path / "a.csv", 'text,n\r\n"a, ""b""\r\nc",1\r\n d ,2\r\n')
    assert list(read_delimited(file)) == [
        (2, {"text": 'a, "b"\r\nc', "n": "1"}),
        (4, {"text": " d ", "n": "2"}),
    ]


def test_semicolons_and_long_cells(tmp_path):
    long = "x" * 200_000
    file = written(tmp_path / "a.csv", f"file;text\n1;1,5\n2;{long}\n")
    assert [row["text"] for _, row in read_delimited(file)] == ["1,5", long]


@pytest.mark.parametrize(
    ("header", "row"),
    [("text|label", "a,b;c|1"), ("text;note, if any;label", "a,b;c;1"), ('"text";"a, b";c', "a,b;c;1")],
)
def test_the_first_line_determines_the_separator(tmp_path, header, row):
    file = written(tmp_path / "a.csv", f"{header}\n{row}\n")
    mark = "|" if "|" in header else ";"
    assert [list(found.values()) for _, found in read_delimited(file)] == [row.split(mark)]


def test_an_ambiguous_first_line_is_an_error(tmp_path):
    file = written(tmp_path / "a.csv", "title, long;text\nhello;foo, bar\n")
    with pytest.raises(ConfigError, match=r"cannot tell whether ',' or ';' separates"):
        list(read_delimited(file))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.jsonl", ""), ("a.txt", "\n\n")])
def test_an_error_names_files_without_rows(tmp_path, name, content, streaming):
    written(tmp_path / name, content)
    with pytest.raises(ConfigError, match=f"is empty: {name} has no rows"):
        texts(tmp_path, streaming=streaming)


def test_json_lines_named_json_are_an_error(tmp_path):
    written(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(ConfigError, match=r"name JSON lines \.jsonl"):
        texts(tmp_path)


def test_headers(tmp_path):
    file = written(tmp_path / "a.csv", ",text\n0,a\n")
    assert list(read_delimited(file)) == [(2, {"column 1": "0", "text": "a"})]
    with pytest.raises(ConfigError, match="names the column 'text' twice"):
        texts(written(tmp_path / "b.csv", "text,text\na,b\n"))
    with pytest.raises(DataError, match="is empty"):
        texts(written(tmp_path / "c.csv", ""))


def test_rows_are_selected_by_text(tmp_path):
    file = written(tmp_path / "a.csv", "text,year\nold,2019\nnew,2020\nnewer,2021\n")
    assert texts(file, where={"year": 2020})[0] == ["new"]
    assert texts(file, where={"year": [2019, "2021"]})[0] == ["old", "newer"]


@pytest.mark.parametrize(
    ("split", "wanted"), [("train[:10%]", ["0"]), ("train[80%:]", ["8", "9"]), ("train[2:4]", ["2", "3"])]
)
def test_parts_of_a_split(tmp_path, split, wanted):
    for file in ("a.csv", "b.txt"):
        header = "text\n" if file == "a.csv" else ""
        written(tmp_path / file, header + "".join(f"{n}\n" for n in range(10)))
        assert texts(tmp_path / file, split=split)[0] == wanted


def test_units_of_text(tmp_path):
    file = written(tmp_path / "a.txt", "one\r\ntwo\n\n \nthree\n\n\n")
    assert list(read_units(file, "line")) == ["one", "two", "three"]
    assert list(read_units(file, "paragraph")) == ["one\ntwo", "three"]
    assert list(read_units(file, "document")) == ["one\r\ntwo\n\n \nthree\n\n\n"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_changed_file_is_read_again(tmp_path, suffix):
    before = {"csv": "text\none\n", "jsonl": '{"text": "one"}\n', "txt": "one\n"}[suffix]
    for text in ("one", "two", "a longer text"):
        file = written(tmp_path / f"a.{suffix}", before.replace("one", text))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert texts(file)[0] == [text]


def test_evaluation_reads_the_same(tmp_path):
    file = written(
        tmp_path / "a.tsv", "\ufeffquestion\tanswer\tid\nwhen?\t10:30\t007\nhow many?\t1.0\t008\nwho?\t\t9\n"
    )
    found = read_table(file)
    assert [one.references for one in found] == [["10:30"], ["1.0"], []]
    assert [one.key for one in found] == ["007", "008", "9"]
    assert [one.key for one in read_table(file, where={"answer": "1.0"})] == ["008"]
    with pytest.raises(DataError, match="line 2: 3 fields"):
        read_table(written(tmp_path / "b.csv", "question,answer\nwhy?,yes, no\n"))


def test_labels_are_read_the_same(tmp_path):
    file = written(tmp_path / "a.tsv", "\ufefffile\tlabel\r\na.png\t007\r\nb.png\tNone\r\n".encode())
    assert read_labels(str(file)) == {"a.png": "007", "b.png": "None"}
    with pytest.raises(ConfigError, match="line 2: 3 fields"):
        read_labels(str(written(tmp_path / "b.csv", "file,label\na.png,cat,dog\n")))


def test_series_are_read_the_same(tmp_path):
    file = written(tmp_path / "a.csv", "\ufeffx;y\r\n1;2.5\r\n3;4\r\n".encode())
    np.testing.assert_array_equal(read_series(file), [[1, 3], [2.5, 4]])


def test_encoding_of(tmp_path):
    assert encoding_of(written(tmp_path / "a", b"")) == "utf-8"
    assert encoding_of(written(tmp_path / "b", "ab,c\n".encode("utf-16-le"))) == "utf-16-le"
    assert encoding_of(written(tmp_path / "c", "aé".encode("latin-1"))) == "utf-8"
