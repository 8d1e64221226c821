"""All settings, read from the source text of their classes, so that a list of names needs no torch."""

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..core.described import describe

SOURCE = Path(__file__).parents[1]
# A class with its decorators, up to its first method: the rest has no fields, and parsing it takes time.
HEAD = re.compile(
    r"^(?:@.*\n)*class \w+\(.*(?:Config|Parts?|Settings|Table|Media|Limits)\b.*\):\n"
    r"(?:(?!    (?:def |@|async )|\S).*\n)*",
    re.MULTILINE,
)
SLOTS = {"DATA": "data", "MODELS": "model", "OBJECTIVES": "objective"}


class Setting(NamedTuple):
    """One field. kind: its type, as written; choices: possible values."""

    kind: str
    text: str
    choices: tuple[str, ...]


@dataclass
class Read:
    """A class as written in its file. slot, kind: if registered."""

    bases: list[str]
    doc: str | None = None
    fields: dict[str, Setting] = field(default_factory=dict)
    slot: str = ""
    kind: str = ""


@cache
def classes() -> dict[str, Read]:
    """Every class of settings by its name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for head in HEAD.finditer(text):
            found.update({node.name: _read(node) for node in ast.parse(head[0]).body if isinstance(node, ast.ClassDef)})
    return found


def _read(node: ast.ClassDef) -> Read:
    read = Read([base.id for base in node.bases if isinstance(base, ast.Name)], ast.get_docstring(node, clean=False))
    own = [
        part
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_"
    ]
    for part in own:
        name, kind = ast.unparse(part.target), ast.unparse(part.annotation)
        if not kind.startswith("ClassVar"):
            words = re.findall(r"'([^']*)'", "".join(re.findall(r"Literal\[[^\]]*\]", kind)))
            read.fields[name] = Setting(kind, _described(part.value), tuple(words))
    for call in node.decorator_list:
        if found := re.fullmatch(r"(\w+)\.register\('(\w+)'\)", ast.unparse(call)):
            read.slot, read.kind = SLOTS.get(found[1], ""), found[2]
    return read


def _described(value: ast.expr | None) -> str:
    """`Field(description="...")`."""
    given = value.keywords if isinstance(value, ast.Call) else []
    texts = [own.value for own in given if own.arg == "description"]
    return str(texts[0].value) if texts and isinstance(texts[0], ast.Constant) else ""


def fields_of(name: str) -> dict[str, Setting]:
    """Fields of a class and its bases."""
    read = classes().get(name)
    if read is None:
        return {}
    found: dict[str, Setting] = {}
    for base in reversed(read.bases):
        found |= fields_of(base)
    found |= {
        own: new._replace(text=new.text or (found[own].text if own in found else ""))
        for own, new in read.fields.items()
    }
    return found | {own: found[own]._replace(text=text) for own, text in describe(read.doc, found).items()}


@cache
def settings() -> dict[str, Setting]:
    """Every setting of a run by its dotted name; of data, model and objective those of all kinds."""
    found: dict[str, Setting] = {}
    for name, own in fields_of("RunConfig").items():
        found[name] = own
        found.update(_below(name, own.kind))
    for slot in SLOTS.values():
        kinds = {read.kind: cls for cls, read in classes().items() if read.slot == slot}
        for cls in kinds.values():
            for name, own in fields_of(cls).items():
                found.setdefault(f"{slot}.{name}", own)
                found.update(_below(f"{slot}.{name}", own.kind))
        found[f"{slot}.kind"] = Setting("str", "which kind of part", tuple(sorted(kinds)))
    return found


def _below(name: str, kind: str) -> dict[str, Setting]:
    """Settings of a group, and of groups in it."""
    group = None if "[" in kind else next((word for word in re.findall(r"\w+", kind) if word in classes()), None)
    found: dict[str, Setting] = {}
    for own, value in fields_of(group).items() if group else ():
        found[f"{name}.{own}"] = value
        found |= _below(f"{name}.{own}", value.kind)
    return found


def meant(name: str, value: str = "") -> str:
    """ "; did you mean train.max_steps=10?" for the last part of a setting's name, or one that differs by a letter."""
    import difflib

    name = SHORT.get(bare := name.lstrip("-").replace("-", "_").lower(), bare)
    known = settings()
    by_last: dict[str, list[str]] = {}
    for full in known:
        by_last.setdefault(full.rpartition(".")[2], []).append(full)
    if name in known:
        near = [name]
    else:
        last = difflib.get_close_matches(name.rpartition(".")[2], by_last, 1, cutoff=0.6)
        near = by_last[last[0]] if last else []
    depth = min((full.count(".") for full in near), default=0)
    near = [full for full in near if full.count(".") == depth]
    near = sorted(near, key=lambda full: (full.split(".")[0] not in ("train", "optim"), full))[:3]
    return f"; did you mean {' or '.join(f'{full}={value}' for full in near)}?" if near else ""


SHORT = {
    "lr": "learning_rate",
    "steps": "max_steps",
    "bs": "batch_size",
    "batch": "batch_size",
    "epoch": "epochs",
    "out": "output_dir",
    "output": "output_dir",
    "dataset": "data.source",
    "source": "data.source",
    "size": "image_size",
    "layers": "num_hidden_layers",
    "wd": "weight_decay",
}  # by common other names
