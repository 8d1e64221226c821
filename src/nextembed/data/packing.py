"""Documents of any length in rows of one length: several a row, none of them split, little padding."""

from collections.abc import Sequence

import torch

from ..core.types import IGNORE_LABEL, Batch, Encoded


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Rows of document numbers whose lengths add up to at most max_length; longest first, each into the first row with
    room. Rows come in the order of their first document, documents of a row in theirs.

    Raises ValueError for a document that is longer than a row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[number] > max_length:
            raise ValueError(f"a document of {lengths[number]} positions does not fit a row of {max_length}")
        place = next((row for row, room in enumerate(free) if room >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(max_length)
        rows[place].append(number)
        free[place] -= lengths[number]
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def collate_rows(rows: Sequence[Sequence[Encoded]], max_length: int) -> Batch:
    """A Batch of packed documents (see `core.types.Batch`), without `position`. Padding has document_ids 0."""
    num = len(rows)
    ids = torch.zeros(num, max_length, dtype=torch.int64)
    labels = torch.full((num, max_length), IGNORE_LABEL)
    targets = torch.zeros(num, max_length, dtype=torch.bool)
    documents, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, encoded in enumerate(rows):
        start = 0
        for number, one in enumerate(encoded, 1):
            here = slice(start, start + len(one.input_ids))
            ids[row, here], labels[row, here], targets[row, here] = one.input_ids, one.labels, one.regression_mask
            documents[row, here] = number
            positions[row, here] = torch.arange(len(one.input_ids))
            start = here.stop
    pixels = torch.cat([one.pixel_values for row in rows for one in row])
    return {"input_ids": ids, "labels": labels, "regression_mask": targets, "document_ids": documents,
            "position_ids": positions, "pixel_values": pixels}  # fmt: skip
