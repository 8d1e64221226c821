"""The summary of skipped samples: counts and the most frequent reasons."""

import json

import pytest

from nextembed.core.run_folder import read_skipped, skipped_in_words


def test_each_row_counts_once(tmp_path):
    places = {"1": "empty file", "2": "empty file", "file b.heic": "HEIC"}
    rows = [{"key": "a", "place": place, "reason": reason} for place, reason in places.items()]
    rows.insert(1, rows[0])
    (tmp_path / "skipped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut')
    found = read_skipped(tmp_path)
    assert [row["place"] for row in found] == ["1", "2", "file b.heic"]
    assert skipped_in_words(found) == "3 could not be read and were left out: 2 x empty file; 1 x HEIC"


@pytest.mark.parametrize(("num", "end"), [(3, "1 x 2"), (5, "1 x 2; ...")])
def test_the_most_frequent_reasons_are_listed(num, end):
    assert skipped_in_words([{"reason": str(i)} for i in range(num)]).endswith(end)
    assert skipped_in_words([]) == ""
