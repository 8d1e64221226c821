"""Every value in every file of a run folder is replaced: the report is a page without foreign HTML, or a one-line
error."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import yaml

from ..altered import ATTACK, altered
from . import tiny
from .box import Box, Case, fault

MINUTES = 4


def prepare(folder: Path) -> None:
    from nextembed.cli import main

    line = [word for word in tiny.words(tiny.images(folder / "images", 16), 3) if not word.startswith("probe")]
    probes = ["probe.num_train=8", "probe.num_validation=4", "probe.num_test=4", "probe.k=2", "probe.penalties=[0.1]"]
    os.chdir(folder)
    assert main([*line, "data.source=emoji", *probes, "output_dir=.", "name=run", "train.ema_decay=null"]) == 0
    for name in ("checkpoints", "report.html"):
        shutil.rmtree("run/" + name) if name == "checkpoints" else os.remove("run/" + name)


def values(file: Path) -> object:
    text = file.read_text()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for file in sorted((fixtures / "run").rglob("*")):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            name = str(file.relative_to(fixtures / "run"))
            for what, value in altered(values(file)):
                yield f"{name}: {what}", lambda box, name=name, value=value: reported(box, name, value)


def reported(box: Box, name: str, value: object) -> str | None:
    shutil.copytree(box.fixtures / "run", "run")
    if not name.startswith("model"):  # its images take most of the time
        shutil.rmtree("run/model")
    try:
        if name.endswith("jsonl"):
            text = "".join(json.dumps(line) + "\n" for line in (value if isinstance(value, list) else [value]))
        else:
            text = yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value)
    except ValueError:
        return None  # a number that cannot be written
    Path("run", name).write_text(text)
    code, said = box.command("report", "run")
    if why := fault(code, said):
        return why
    if code == 0 and ATTACK[:20] in Path("run/report.html").read_text():
        return "foreign HTML is in the page"
    return None
