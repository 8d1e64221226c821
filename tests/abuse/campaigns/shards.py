"""One damaged file in a data set: rows are skipped, or a one-line error names the file, streaming or not."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from nextembed.errors import NextEmbedError

from . import documents, tiny
from .box import Box, Case, fault
from .damage import DAMAGE

MINUTES = 3
FORMS = ["parquet", "jsonl", "csv", "tar", "images.parquet", "images.tar", "folder", "metadata.csv", "metadata.jsonl"]
# SILENT: damage that may leave the result unchanged or only drop rows. EMPTY: damage that leaves no rows; not a fault.
SILENT = {"whole", "one bit", "some bytes", "head", "zeros", "hole", "huge", "doubled", "junk behind", "cut",
          "invalid UTF-8"}  # fmt: skip
EMPTY = {("empty", "jsonl"), ("empty", "csv"), ("all zeros", "tar"), ("junk before", "tar")}


def prepare(folder: Path) -> None:
    tiny.images(folder / "images", 12)


def written(form: str, folder: Path, images: list[Path]) -> list[Path]:
    """Writes a data set of three files, or a folder with metadata; returns the files that may be damaged."""
    folder.mkdir()
    if form == "folder" or form.startswith("metadata"):
        for image in images:
            shutil.copy(image, folder)
        if form == "folder":
            return sorted(folder.iterdir())[:1]
        rows = [{"file_name": image.name, "text": f"a cat {image.stem}"} for image in images]
        (folder / form).write_text(table(form, rows))
        return [folder / form]
    files = []
    for number in range(3):
        files.append(folder / f"train-{number}.{form.rpartition('.')[2]}")
        own = images[4 * number :][:4]
        if form.endswith("tar"):
            with tarfile.open(files[-1], "w") as tar:
                for image in own:
                    for name, data in ((image.name, image.read_bytes()), (f"{image.stem}.txt", b"a cat")):
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            continue
        shown = [{"image": {"bytes": image.read_bytes(), "path": None}, "label": int(image.stem) % 2} for image in own]
        said = [{"text": f"a cat {image.stem}"} for image in own]
        if form.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(shown if form.startswith("images") else said), files[-1])
        else:
            files[-1].write_text(table(form, said))
    return files


def table(form: str, rows: list[dict]) -> str:
    if form.endswith("jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for form in FORMS:
        for streaming in (False, True):
            for kind in DAMAGE:
                name = f"{form} {'streamed' if streaming else 'map'}: {kind}"
                yield name, lambda box, made=(form, streaming, kind): read(box, *made)


def read(box: Box, form: str, streaming: bool, kind: str) -> str | None:
    data = box.folder / "data"
    files = written(form, data, sorted((box.fixtures / "images").iterdir()))
    file = files[len(files) // 2]
    file.write_bytes(DAMAGE[kind](file.read_bytes(), box.rng))
    of_images = form.startswith(("images", "folder", "metadata"))
    try:
        code, said, skipped = (as_images if of_images else as_text)(box, data, form, streaming)
    except NextEmbedError as err:
        code, said, skipped = 1, f"nextembed: {err}", ""
    if why := fault(code, said):
        return why
    if code == 0:
        noticed = skipped not in ("", "[]") or kind in SILENT or (kind, form.rpartition(".")[2]) in EMPTY
        return None if noticed else f"{kind} goes unnoticed"
    return None if file.name in said else f"does not name the file: {said.strip()[-250:]}"


def as_images(box: Box, data: Path, form: str, streaming: bool) -> tuple[int, str, str]:
    tiny.without_report()
    more = ["data.max_skipped_rate=0.6", f"data.streaming={str(streaming).lower()}", "name=run", "output_dir=."]
    code, said = box.command(*tiny.words(data, 8, *more, "train.save_steps=1000"))
    skipped = box.folder / "run" / "skipped.jsonl"
    return code, said, skipped.read_text() if skipped.exists() else ""


def as_text(box: Box, data: Path, form: str, streaming: bool) -> tuple[int, str, str]:
    column = {"tar": "txt"}.get(form, "text")
    part = documents.part("text", data, streaming, text_column=column)
    skipped = documents.trained(part, 20, box.folder / "skipped.jsonl")
    return 0, "", json.dumps(skipped)
