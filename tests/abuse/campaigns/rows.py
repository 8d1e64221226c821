"""Broken rows of documents are skipped and listed, whatever they contain, and the intact rows are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from nextembed.errors import ConfigError

from ..altered import altered
from . import documents, tiny
from .box import Box, Case
from .damage import DAMAGE

MINUTES = 3
ASKED = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "a cat"}]
RECORDS = {"pieces": {"image": "image", "text": "text"}, "layouts": ["image text"]}
KINDS = {
    "pairs": ({"image": "00.png", "text": "a cat"}, {}),
    "records": ({"image": "00.png", "text": "a cat"}, RECORDS),
    "interleaved": ({"segments": [{"text": "a cat"}, {"image": "00.png"}]}, {}),
    "messages": ({"images": ["00.png"], "messages": [{"role": "user", "content": "<image> who?"}, ASKED[1]]}, {}),
}  # fmt: skip
HALF, DEEP = '"\\ud83d"', "[" * 100_000
LINES = [
    DEEP, '{"x":' * 50_000, "9" * 10_000, "{", "null", "[1, 2]", "\ufeff{}", "{'text': 'a'}", f'{{"text": {HALF}}}',
    f'{{"text": {HALF}, "image": "00.png"}}', f'{{"segments": [{{"text": {HALF}}}]}}', f'{{"segments": {DEEP}',
    '{"image": "../images/00.png", "text": "a"}', '{"image": "/etc/passwd", "text": "a"}',
    '{"image": "http://127.0.0.1:1/a.png", "text": "a"}', f'{{"messages": [{{"role": {HALF}, "content": {HALF}}}]}}',
]  # fmt: skip


def prepare(folder: Path) -> None:
    tiny.images(folder / "images", 1)


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for kind, (good, _) in KINDS.items():
        bad = {what: json.dumps(value).encode() for what, value in altered(good)}
        bad |= {f"line {line[:30]} {number}": line.encode() for number, line in enumerate(LINES)}
        for damage in DAMAGE:
            for number in range(3):
                bad[f"{damage} {number}"] = DAMAGE[damage](json.dumps(good).encode(), Random(f"{damage} {number}"))
        for streaming in (False, True):
            for what, line in bad.items():
                name = f"{kind} {'streamed' if streaming else 'map'}: {what}"
                yield name, lambda box, kind=kind, streaming=streaming, line=line: read(box, kind, streaming, line)


def read(box: Box, kind: str, streaming: bool, line: bytes) -> str | None:
    good, settings = KINDS[kind]
    lines = [json.dumps(good).replace("a cat", f"good {number}").encode() for number in range(3)]
    (box.folder / "00.png").write_bytes((box.fixtures / "images" / "00.png").read_bytes())
    (box.folder / "rows.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    try:
        part = documents.part(kind, box.folder / "rows.jsonl", streaming, **settings)
        segments = [one for row in part.documents("train") for one in row["segments"]]
        found = str([one["value"] for one in segments if one["kind"] == "text"])
        skipped = documents.trained(part, 6, box.folder / "skipped.jsonl")
    except ConfigError as err:  # a file that is not text may be reported instead
        return None if "rows.jsonl" in str(err) and "\n" not in str(err) else f"ConfigError: {err}"
    if missing := [number for number in range(3) if f"good {number}" not in found]:
        return f"a good row is not read: {missing[0]}"
    for one in skipped:
        if "\n" in one["reason"] or not 0 < len(one["reason"]) < 400:
            return f"no line: {one['reason'][:300]!r}"
        if not streaming and one["key"] == "0":
            return f"a good row is skipped: {one['reason']}"
    return None
