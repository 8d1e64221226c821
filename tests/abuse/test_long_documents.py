"""Only the part of a long document that fits into a row is encoded, with the same result as encoding all of it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextembed.core.types import Encoded
from nextembed.data.packing import NO_TARGET, OK, TOO_LONG, TRUNCATED, Fit
from nextembed.models.omni import OmniProcessor

OMNI = OmniProcessor({"text": {}, "image": {"image_size": 4, "patch_size": 2}})
BEGIN, IMAGE, STOP = 1, 2, 3


def encode_as_emu_does(document) -> Encoded:
    """Letters as ids, white space next to images stripped, 4 positions per image, none for empty text."""
    segments, ids, labels, seen = document["segments"], [BEGIN], [-100], []
    for number, one in enumerate(segments):
        if one["kind"] != "text":
            ids += [IMAGE] * 4
            labels += [-100] * 4
            seen.append(one["value"].float().mean())
            continue
        text = one["value"]
        text = text.lstrip() if number and segments[number - 1]["kind"] != "text" else text
        text = text.rstrip() if number + 1 < len(segments) and segments[number + 1]["kind"] != "text" else text
        ids += map(ord, text)
        labels += map(ord, text) if one["loss"] else [-100] * len(text)
    positions = {"input_ids": torch.tensor([*ids, STOP]), "labels": torch.tensor([*labels, STOP])}
    return Encoded(positions, {"pixel_values": torch.tensor(seen)})


def cut_knowing_all(encode, document, max_length):
    """A brute-force version of `Fit`: encodes the whole document and every prefix of its segments."""
    whole = encode(document)
    if whole.length <= max_length:
        return OK, whole
    segments = document["segments"]
    parts = [encode({**document, "segments": segments[:i]}) for i in range(1, len(segments) + 1)]
    fits = next(i for i, part in enumerate(parts) if part.length > max_length)
    if fits == 0 and segments[0]["kind"] != "text":
        return TOO_LONG, None
    more, values, length = parts[fits], parts[fits].values, max_length
    if segments[fits]["kind"] != "text":
        less = parts[fits - 1]
        values, both = less.values, min(less.length, length)
        same = less.positions["input_ids"][:both] == more.positions["input_ids"][:both]
        length = both if bool(same.all()) else int(same.int().argmin())
    cut = Encoded({name: rows[:length] for name, rows in more.positions.items()}, values)
    names = [name for name in NO_TARGET if name in cut.positions]
    has_target = any(bool((cut.positions[name] != NO_TARGET[name]).any()) for name in names)
    return (TRUNCATED, cut) if has_target else (TOO_LONG, None)


texts = st.builds(lambda value, loss: {"kind": "text", "value": value, "loss": loss},
                  st.sampled_from(["", "a", " b", "c ", "word", "two words "]), st.booleans())  # fmt: skip
images = st.builds(lambda value: {"kind": "image", "value": torch.full((3, 4, 4), value, dtype=torch.uint8),
                                  "loss": True}, st.integers(0, 255))  # fmt: skip
documents = st.lists(st.one_of(texts, texts, images), min_size=1, max_size=40)


def same(found, wanted):
    (outcome, one), (other_outcome, other) = found, wanted
    if outcome != other_outcome or (one is None) != (other is None):
        return False
    return one is None or all(
        part.keys() == parts.keys() and all(torch.equal(part[name], parts[name]) for name in part)
        for part, parts in zip(one, other)
    )


@settings(max_examples=60, deadline=None)
@given(segments=documents, max_length=st.integers(2, 24), seed=st.integers(0, 3))
def test_truncation_equals_that_of_the_whole_document(segments, max_length, seed):
    document = {"key": "", "segments": segments, "seed": seed}
    for encode in (encode_as_emu_does, OMNI.encode_document):
        wanted = cut_knowing_all(encode, document, max_length)
        assert same(Fit(encode, max_length, "truncate")(document), wanted)
        left_out = wanted if wanted[0] == OK else (TOO_LONG, None)
        assert same(Fit(encode, max_length, "skip")(document), left_out)


def test_only_the_fitting_part_is_encoded():
    most = 0

    def counted(document):
        nonlocal most
        most = max(most, len(document["segments"]))
        return OMNI.encode_document(document)

    segments = [{"kind": "text", "value": f"word {i}"} for i in range(64_000)]
    outcome, encoded = Fit(counted, 256, "truncate")({"key": "", "segments": segments})
    assert outcome == TRUNCATED and encoded.length == 256 and most <= 258


def test_segments_without_positions_do_not_cause_truncation():
    segments = [{"kind": "text", "value": "", "loss": True} for _ in range(5000)]
    segments += [{"kind": "text", "value": "end", "loss": True}]
    outcome, encoded = Fit(encode_as_emu_does, 8, "truncate")({"key": "", "segments": segments})
    assert outcome == OK and encoded.length == 5
