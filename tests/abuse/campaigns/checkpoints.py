"""A damaged newest checkpoint is a one-line error with the file name; the run does not resume from it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from . import tiny
from .box import Box, Case, fault
from .damage import DAMAGE

NEWEST = Path("run/checkpoints/step-000004")


def prepare(folder: Path) -> None:
    from nextembed.cli import main

    tiny.without_report()
    more = ["train.save_steps=2", "train.keep_checkpoints=3", "train.ema_decay=0.9", "objective.target=teacher"]
    assert main(tiny.words(tiny.images(folder / "images"), 6, *more, f"output_dir={folder}", "name=run")) == 0
    for name in ("checkpoints/step-000006", "model", "ema"):  # the state after step 4
        shutil.rmtree(folder / "run" / name)


def missing(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_loop(file: Path) -> None:
    file.unlink()
    os.symlink(file.name, file)


def another(file: Path) -> None:
    shutil.copy(next(one for one in sorted(NEWEST.rglob("*.*")) if one.is_file() and one != file), file)


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    names = sorted(
        str(path.relative_to(fixtures / NEWEST)) for path in (fixtures / NEWEST).rglob("*") if path.is_file()
    )
    for name in names:
        for kind in set(DAMAGE) - {"whole"}:
            yield f"{name}: {kind}", lambda box, name=name, kind=kind: refused(box, name, bytes_of(kind, box))
        for change in (missing, a_folder, a_loop, another):
            yield f"{name}: {change.__name__}", lambda box, name=name, change=change: refused(box, name, change)


def bytes_of(kind: str, box: Box):
    return lambda file: file.write_bytes(DAMAGE[kind](file.read_bytes(), box.rng))


def refused(box: Box, name: str, change) -> str | None:
    tiny.without_report()
    shutil.copytree(box.fixtures / "run", "run")
    before = tiny.tree(NEWEST)
    change(NEWEST / name)
    if tiny.tree(NEWEST) == before:
        return None  # the damage changed nothing
    code, said = box.command("train", "--resume", "run")
    if why := fault(code, said, (1, 2)):
        return why
    file = Path(name).name
    return None if file in said else f"does not name {file}: {said.strip()[-200:]}"
