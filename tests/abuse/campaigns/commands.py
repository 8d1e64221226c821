"""Command lines with invalid arguments end within seconds with one line and exit code 0, 1 or 2, and leave foreign
files unchanged."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from . import tiny
from .box import Box, Case, outside

MINUTES, COUNT = 4, 300
LINES = """\
train nepa_demo_tiny data.source=images train.max_steps=1 output_dir=new name=a
train --resume run train.max_steps=3
train run/config.yaml output_dir=new
train latent_decoder_tiny model.pretrained=run/model data.source=images output_dir=new
recipes nepa_demo_tiny seed=1
plan nepa_demo_tiny --devices 2 --json plan.json
probe run --data images --output p.json
evaluate run --data images -o e.json
report run
embed run images -o f.parquet --limit 4 --layer 1 --pooling mean
search features.parquet images/00.png --top 3 -o s.png
visualize run images/00.png -o v.png --layer 1 --head 1 --patch 1
export run -o m.pt2 --layer 1 --size 16,16
convert run converted --weights raw
push run a/b --dry-run card --license mit
generate run hello -o g.png --seed 1
chat run --beams 1
doctor""".splitlines()
WORDS = """. .. ../.. / // ~ - -- -o --help = x= =x a=b=c 0 -1 1e308 nan inf {a:1 theirs theirs/thesis.txt ../above.txt
link link-to-folder loop /dev/null /proc/self/mem /etc/passwd http://127.0.0.1:9/x hf://a/b nothing/here images run
run/model features.parquet empty %s {} $(touch) * \\ ü\U0001f600 \udc80"""
ODD = [*WORDS.split(), "", "9" * 400, "x" * 5000, "[" * 5000, "a b", "a\nb", "\x1b[2J"]
PLACES = """.. . / ../.. theirs theirs/.. theirs/ link link-to-folder loop theirs/thesis.txt/x run images pipe /dev/null
/proc/x ../above.txt/.. \udc80 run/config.yaml/.. empty"""
OUTPUTS = [*PLACES.split(), "x" * 300]
SKIP = ("evaluate", "generate", "chat")  # these need other models
NAMED = ["-o", "--output", "--json", "--dry-run", "output_dir", "name"]


def prepare(folder: Path) -> None:
    from nextembed.cli import main

    tiny.without_report()
    os.chdir(folder)
    tiny.images(folder / "images", labels=True)
    assert main(tiny.words(Path("images"), 2, "output_dir=.", "name=run", "train.ema_decay=null")) == 0
    assert main(["embed", "run", "images", "-o", "features.parquet"]) == 0


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for line in map(str.split, LINES):
        yield f"as it is: {' '.join(line)}", lambda box, words=line: one(box, words, words[0] not in SKIP)
        for words in to_outputs(line):
            yield f"output: {' '.join(words)!r:.150}", lambda box, words=words: one(box, words)
    for number in range(COUNT):
        words = rng.choice(LINES).split()
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(min(len(words) - 1, rng.random() > 0.1), len(words))
            key, equals, _ = words[at].partition("=")
            odd = rng.choice(ODD)
            words[at : at + 1] = rng.choice([[], [words[at]] * 2, [odd], [odd], [key + equals + odd], [words[at], odd]])
            words = words or [odd]
        yield f"{number}: {' '.join(words)!r:.120}", lambda box, words=words: one(box, words)


def to_outputs(words: list[str]) -> Iterator[list[str]]:
    """Variants of the command line with other paths for each output."""
    for at, word in enumerate(words):
        key, equals, _ = word.partition("=")
        if key in NAMED or (at == 2 and words[0] == "convert"):
            for output in OUTPUTS:
                own = [word, output] if not equals and word in NAMED else [f"{key}={output}" if equals else output]
                yield [*words[:at], *own, *words[at + len(own) :], *(["data.label_column=nope"] if equals else [])]


def surroundings(box: Box) -> Path:
    """The current folder of the command, with foreign files in and around it."""
    here = box.folder / "around" / "here"
    for name in ("theirs", "empty", "../theirs"):
        (here / name).mkdir(parents=True, exist_ok=True)
    for name in ("theirs/thesis.txt", "theirs/skipped.jsonl", "theirs/config.yaml", "thesis.txt", "../above.txt",
                 "../theirs/config.yaml", "../../outside.txt"):  # fmt: skip
        (here / name).write_text("three years of work")
    for link, to in (("link", "../above.txt"), ("link-to-folder", "../theirs"), ("loop", "loop")):
        (here / link).symlink_to(to)
    os.mkfifo(here / "pipe")
    for name in ("run", "images"):
        shutil.copytree(box.fixtures / name, here / name)
    shutil.copy(box.fixtures / "features.parquet", here)
    return here


def one(box: Box, words: list[str], whole: bool = False) -> str | None:
    here = surroundings(box)
    os.chdir(here)
    before = {name: value for name, value in tiny.tree(box.folder).items() if not name.startswith("around/here/run/")}
    named = {os.path.realpath(word.rpartition("=")[2]) for word in words if len(word) < 200}
    why = box.one_line(*words, codes=(0,) if whole else (0, 1, 2))
    asked = [f"{event} {path}" for event in ("open", "os.mkdir") for path in named]
    outside[:] = [one for one in outside if not one.startswith(tuple(asked))]  # without requested outputs
    os.chdir(box.folder)
    now = tiny.tree(box.folder)
    for name, value in before.items():
        if now.get(name, "gone") != value and os.path.realpath(box.folder / name) not in named:
            return f"{name} is {'changed' if name in now else 'gone'}"
    if new := [name for name in now.keys() - before.keys() if not name.startswith("around/here/")]:
        new = [name for name in new if not os.path.realpath(box.folder / name).startswith(tuple(named - {str(here)}))]
    return why or (f"{min(new)} is new" if new else None)
