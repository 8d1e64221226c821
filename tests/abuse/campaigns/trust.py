"""Foreign folders and files that refer to Python code: no command runs it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import yaml

from ..altered import leaves, put
from . import tiny
from .box import Box, Case

MINUTES = 3
EVIL = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
import nextembed
from nextembed import ImageData as Data, NepaModel as Net, NextEmbeddingSettings as Goal
def recipe(): return nextembed.recipes.load("nepa_demo_tiny")
"""
CODE = ["{evil}:Data", "{evil}:Net", "{evil}:Goal", "{evil}:recipe", "{evil}", "evil.py:Data", "evil.Data", "evil:Data",
        "evil--evil.Data", "os:abort", "nextembed.run:fit"]  # fmt: skip
AUTO = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor")
MAPS = {"auto_map": {name: f"evil.{name}" for name in AUTO}, "model_type": "evil", "trust_remote_code": True}
COMMANDS = {
    "config": """report run, probe run, evaluate run, plan run, recipes run, recipes run/config.yaml, embed run images,
push run a/b --dry-run card, train run/config.yaml name=again, train --resume run, convert run target,
visualize run images""",
    "model": """embed run/model images, convert run/model target, push run/model a/b --dry-run card, chat run/model,
probe run/model --data images, visualize run/model images, train nepa_demo_tiny model.pretrained=run/model,
generate run/model hello, evaluate run/model --data images, export run/model -o model.pt2""",
    "features": """search features.parquet 00.png -o sheet.png, search features.parquet --score,
search features.parquet images/00.png, embed run images -o features.parquet --overwrite""",
}


def prepare(folder: Path) -> None:
    from nextembed.cli import main

    tiny.without_report()
    os.chdir(folder)
    tiny.images(folder / "images", labels=True)
    assert main(tiny.words(Path("images"), 2, "output_dir=.", "name=run", "train.save_steps=1")) == 0
    assert main(["embed", "run", "images", "-o", "features.parquet"]) == 0


def content(fixtures: Path, name: str) -> Any:
    if name.endswith("parquet"):
        own = pq.read_schema(fixtures / name).metadata
        return {key.decode(): json.loads(value) for key, value in own.items() if value.startswith(b"{")}
    return yaml.safe_load((fixtures / name).read_text())


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    files = {"run/config.yaml": "config", "run/environment.json": "config", "features.parquet": "features",
             **{f"run/model/{file.name}": "model" for file in (fixtures / "run" / "model").glob("*.json")}}  # fmt: skip
    for name, kind in files.items():
        value = content(fixtures, name)
        for place in leaves(value):
            inside = value
            for part in place:
                inside = inside[part]
            for code in CODE if isinstance(inside, str | None) else [""] if isinstance(inside, dict) else []:
                line = " ".join(rng.choice(COMMANDS[kind].split(",")).split())
                words = f"{name} {'.'.join(map(str, place))} = {code or 'auto_map'}: {line}"
                yield words, lambda box, made=(name, place, code, line): one(box, *made)


def one(box: Box, name: str, place: tuple, code: str, line: str) -> str | None:
    for own in ("run", "images"):
        shutil.copytree(box.fixtures / own, own)
    for folder in (".", "run", "run/model"):
        Path(folder, "evil.py").write_text(EVIL)
    value = content(box.fixtures, name)
    inside = value
    for part in place:
        inside = inside[part]
    value = put(value, place, code.format(evil=box.folder / "run" / "evil.py") if code else {**inside, **MAPS})
    if name.endswith("parquet"):
        table = pq.read_table(box.fixtures / name)
        pq.write_table(table.replace_schema_metadata({k: json.dumps(v) for k, v in value.items()}), name)
    else:
        Path(name).write_text(yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value))
    tiny.without_report()
    why = box.one_line(*line.split())
    return f"code was run: {why}" if list(box.folder.rglob("RAN")) else why
