"""The validation loss on documents."""

import pytest
import torch

from nextembed.core.types import Encoded
from nextembed.data.documents import Documents, RowSource, text
from nextembed.errors import DataError
from nextembed.evaluation.held_out import held_out_loss


class Part:
    def document(self, row, seed):
        return {"key": row["key"], "segments": [text(row["words"])]}


def encode(document):
    words = document["segments"][0]["value"]
    if words == "odd":
        raise ValueError("text cannot be encoded")
    ids = torch.arange(len(words))
    return Encoded({"input_ids": ids, "labels": ids}, {})


class Data:
    def __init__(self, *texts):
        self.rows = [{"key": f"row {i}", "words": words} for i, words in enumerate(texts)]

    def documents(self, split):
        return Documents([RowSource(Part(), self.rows)], 0.5)


def test_a_document_that_cannot_be_encoded_is_skipped_and_reported():
    found = held_out_loss(Data("abc", "odd", "abcd", "much too long"), encode, 8, 2, None)
    assert list(found.skipped) == ["row 1", "row 3"] and found.skipped["row 1"].startswith("text cannot be encoded")
    assert sum(int((b["document_ids"] > 0).sum()) for b in found.batches) == 7


def test_too_many_skipped_documents_are_an_error():
    with pytest.raises(DataError, match=r"2 of 3 documents are unreadable.*row 0: text cannot be encoded"):
        held_out_loss(Data("odd", "odd", "abc"), encode, 8, 2, None)
