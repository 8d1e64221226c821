"""Counts of used, skipped and truncated data agree at the start, in metrics, at the end and in reports."""

import itertools
import json

import pytest
from encoding import encode

import nextembed.data.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.run_folder import data_in_words, read_skipped
from nextembed.core.types import Loading
from nextembed.data.pairs import TextData
from nextembed.training.banner import found_data


def texts(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(data, tmp_path, num_batches, num_workers=0, max_length=16):
    given = Loading(2, 0, 0, 1, None, tmp_path / "skipped.jsonl")
    data = data.model_copy(update={"num_workers": num_workers})
    loader = data.train_loader(given, encode=encode, max_length=max_length)
    for _ in itertools.islice(loader, num_batches):
        pass
    return loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_totals_of_documents(tmp_path, num_workers):
    rows = [{"text": "x" * (40 if i % 4 == 0 else 5)} for i in range(60)] + [{"text": None}] * 3
    data = TextData(source=texts(tmp_path / "a.jsonl", rows), max_skipped_rate=0.1)
    loader = loaded(data, tmp_path, 80, num_workers)
    assert loader.facts().items() >= {"data_rows": 63, "data_skipped": 3}.items()
    cut, of = loader.shares()["truncated_rate"]
    assert abs(cut / of - 0.25) < 0.03
    assert loader.shares() == {}  # reported once
    history = [loader.facts() | {"truncated_rate": 0.2}, loader.facts() | {"truncated_rate": 0.3}]
    said = data_in_words(history, read_skipped(tmp_path))
    assert said.startswith("60 of 63 used; 3 could not be read and were left out: 3 x it has no 'text'")
    assert said.endswith("25.0% of the documents read were cut at their end (too long)")


def test_totals_of_rows_without_a_layout(tmp_path):
    """Rows that match no layout are expected, not errors, but they are counted and listed."""
    rows = [{"caption": "a"}, {"caption": "b"}, {"other": "c"}, {"caption": None}]
    source = texts(tmp_path / "a.jsonl", rows)
    given = {"kind": "records", "source": source, "pieces": {"caption": "text"}, "max_skipped_rate": 0.0}
    data = DATA.parse(given)
    first, second = found_data(data, 2)[0]
    assert first.endswith("2 documents for training")
    assert second.strip() == "2 rows are not used: it has the values for none of data.layouts"
    loader = loaded(data, tmp_path, 3)
    assert loader.facts().items() >= {"data_rows": 4, "data_skipped": 2}.items()
    assert [row["key"] for row in read_skipped(tmp_path)] == ["row 2", "row 3"]
    again = DATA.parse({"kind": "mixture", "sources": [given, {"kind": "text", "source": "glosses"}]})
    assert "         2 rows are not used: it has the values for none of data.layouts" in found_data(again, 2)[0]
    assert again.unused("train") == {"0/row 2": "it has the values for none of data.layouts"} | {
        "0/row 3": "it has the values for none of data.layouts"
    }


def test_totals_of_data_that_is_all_used(tmp_path):
    assert data_in_words([{"data_rows": 10, "data_skipped": 0}], []) == "10 of 10 used"
    assert data_in_words([{"step": 1}], []) == ""
