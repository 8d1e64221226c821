"""A small document encoder for tests: characters as ids, N = 3 positions per image, its mean as pixel value."""

import torch

from nextembed.core.types import Document, Encoded

BEGIN, START, IMAGE, END, STOP, FIRST = 1, 2, 3, 4, 5, 10
PLACES = 3


def encode(document: Document) -> Encoded:
    ids, labels, mask, pixels = [BEGIN], [-100], [False], []
    for segment in document["segments"]:
        loss = segment["loss"]
        if segment["kind"] == "text":
            tokens = [FIRST + ord(letter) for letter in segment["value"]]
            ids += tokens
            labels += tokens if loss else [-100] * len(tokens)
            mask += [False] * len(tokens)
            continue
        for frame in segment["value"] if segment["kind"] == "video" else segment["value"][None]:
            assert frame.dtype == torch.uint8 and frame.shape[0] == 3
            ids += [START, *[IMAGE] * PLACES, END]
            labels += [-100] * (PLACES + 2)
            mask += [False, *[loss] * (PLACES + 1)]
            pixels.append(frame.float().mean((1, 2)).view(1, 3, 1, 1))
    return encoded(
        torch.tensor([*ids, STOP]),
        torch.tensor([*labels, STOP]),
        torch.tensor([*mask, False]),
        torch.cat(pixels) if pixels else torch.zeros(0, 3, 1, 1),
    )


def encoded(ids, labels, mask, pixels) -> Encoded:
    return Encoded({"input_ids": ids, "labels": labels, "regression_mask": mask}, {"pixel_values": pixels})


def ids_of(one: Encoded) -> torch.Tensor:
    return one.positions["input_ids"]


def written(ids) -> str:
    """The text for the ids, with * for an image."""
    return "".join({START: "*"}.get(i, chr(i - FIRST) if i >= FIRST else "") for i in ids.tolist())


def unpacked(batch) -> list[Encoded]:
    """The documents of a packed batch, with their images."""
    found, image = [], 0
    for row in range(len(batch["input_ids"])):
        ids = batch["document_ids"][row]
        for number in range(1, int(ids.max()) + 1):
            here = (ids == number).nonzero()[:, 0]
            assert torch.equal(here, torch.arange(int(here[0]), int(here[-1]) + 1))  # contiguous
            assert torch.equal(batch["position_ids"][row, here], torch.arange(len(here)))
            tokens = batch["input_ids"][row, here]
            images = int((tokens == START).sum())
            pixels = batch["pixel_values"][image : image + images]
            found.append(encoded(tokens, batch["labels"][row, here], batch["regression_mask"][row, here], pixels))
            image += images
        padding = ids == 0
        assert (batch["labels"][row, padding] == -100).all() and not batch["regression_mask"][row, padding].any()
    assert image == len(batch["pixel_values"])
    return found
