"""For any output path, foreign files are never changed or removed, and errors are one line."""

import dataclasses
import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextembed.cli.app import main
from nextembed.core.files import checked_file, write_json
from nextembed.core.probe_table import ProbeTable
from nextembed.core.scores import ClassArea, ClassScores, SegmentScores
from nextembed.errors import ConfigError
from nextembed.evaluation.features.parts import Parts
from nextembed.evaluation.features.sheet import save_sheet
from nextembed.evaluation.language.scores import LanguageScores
from nextembed.export.facts import Facts
from nextembed.export.hub import write_hub_folder
from nextembed.export.layouts import convert
from nextembed.inference.conversation import Conversation
from nextembed.inference.signals import write_signal
from nextembed.models.emu.visual_decoder import VisualDecoder
from nextembed.models.nepa.settings import NepaModel
from nextembed.planning.plan import Plan
from nextembed.report.figures import made_here
from nextembed.report.visualize import Visualization
from nextembed.runs import open_run
from nextembed.training.checkpoint import write_model

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    part = NepaModel(**TINY)
    backbone = part.build()
    write_model(folder, backbone, None, part.processor())
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder home/now with foreign files; `link` points to a foreign folder."""
    for file in ("home/letter.txt", "home/now/thesis.tex", "home/now/theirs/a.png", "elsewhere/config.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("theirs")
    (tmp_path / "home" / "now" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "home" / "now")
    return tmp_path


def made(cls, **values):
    """An object with minimal field values."""
    missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    return cls(**({name: 0 for name in missing} | values))


def asked():
    talk = Conversation()
    talk.ask("what?")
    talk.answer("that")
    return talk


class Drawing:
    def png(self):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=made_here())
        return file.getvalue()

    def panels(self):
        return {"attention": self.png()}


def report(path):
    Path("../../run").mkdir(exist_ok=True)
    Path("../../run/config.yaml").write_text("name: run\n")
    open_run("../../run").report(path)


FILES = {
    "plan": lambda path: made(Plan).save(path),
    "probe": lambda path: ProbeTable(rows=[]).save(path),
    "classification": lambda path: made(ClassScores, class_names=[], confusion=[]).save(path),
    "segmentation": lambda path: made(SegmentScores, per_class=[ClassArea("sky", 1, 1)]).save(path),
    "language": lambda path: made(LanguageScores, metrics=[]).save(path),
    "sheet": lambda path: save_sheet(Image.new("RGB", (2, 2)), path),
    "text": lambda path: write_signal("text", "a", Path(path)),
    "image": lambda path: write_signal("image", torch.zeros(3, 2, 2, dtype=torch.uint8), Path(path)),
    "series": lambda path: write_signal("series", [1.0], Path(path)),
    "conversation": lambda path: asked().save(path),
    "report": report,
    "embed": lambda path: Parts(Path(path)).check(overwrite=True),
    "checked": checked_file,
}
FOLDERS = {
    "convert": lambda path, model: convert(model, path),
    "push": lambda path, model: write_hub_folder(Facts(model, {}, False), path, "me/nepa"),
    "visual_decoder": lambda path, model: VisualDecoder.save_pretrained(None, path),
}


def refused(function, *words):
    with pytest.raises(ConfigError) as caught:
        function(*words)
    assert "\n" not in str(caught.value) and str(caught.value)


TAKEN = [".", "..", "/", "theirs", "link", "theirs/..", "thesis.tex/x", "/dev/null/x"]


@pytest.mark.parametrize("path", TAKEN)
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_not_written_over_a_folder_or_below_a_file(here, name, path):
    if name == "report":
        report("page.html")
    before = tree(here)
    refused(FILES[name], path)
    assert tree(here) == before


@pytest.mark.parametrize("path", [*TAKEN, "thesis.tex"])
@pytest.mark.parametrize("name", FOLDERS)
def test_an_output_folder_must_be_new(here, model, name, path):
    before = tree(here)
    refused(FOLDERS[name], path, model)
    assert tree(here) == before


@pytest.mark.parametrize("path", [".", "..", "theirs", "link", "thesis.tex"])
@pytest.mark.parametrize(
    "words",
    [
        ["plan", "nepa_demo_tiny", "--json", "PATH"],
        ["probe", "MODEL", "--data", "emoji", "--output", "PATH"],
        ["evaluate", "MODEL", "--data", "emoji", "-o", "PATH"],
        ["export", "MODEL", "--format", "onnx", "-o", "PATH"],
        ["embed", "MODEL", "emoji", "-o", "PATH"],
        ["search", "features.parquet", "key", "-o", "PATH"],
        ["convert", "MODEL", "PATH"],
        ["push", "MODEL", "me/nepa", "--dry-run", "PATH"],
        ["train", "nepa_demo_tiny", "output_dir=PATH", "data.label_column=nope"],
    ],
    ids=lambda words: words[0],
)
def test_commands_check_outputs_first(here, model, capsys, words, path):
    """Commands that replace an existing file by design are skipped for that case."""
    if path == "thesis.tex" and words[0] in ("plan", "probe", "evaluate", "export"):
        pytest.skip("replaces an existing file by design")
    before = tree(here)
    code = main([word.replace("PATH", path).replace("MODEL", str(model)) for word in words])
    said = capsys.readouterr().err.strip()
    assert code == 2 and len(said.splitlines()) == 1 and "unexpected" not in said, said
    assert tree(here) == before


def test_a_link_to_a_file_is_followed(here):
    """The link remains, and the rest of the target folder is unchanged."""
    Path("probe.json").symlink_to(here / "elsewhere" / "probe.json")
    write_json("probe.json", {"loss": float("nan"), "best": [float("inf"), 1]})
    assert Path("probe.json").is_symlink()
    assert (here / "elsewhere" / "probe.json").read_text() == '{\n "loss": null,\n "best": [\n  null,\n  1\n ]\n}\n'
    assert sorted(os.listdir(here / "elsewhere")) == ["config.json", "probe.json"]


def test_panels_are_added_to_a_folder(here):
    """The only output that is documented to add files to an existing folder."""
    before = tree(here)
    paths = Visualization(None, 0, Drawing(), []).save("theirs")
    assert sorted(path.name for path in paths) == ["all.png", "attention.png"]
    assert {name: value for name, value in tree(here).items() if name in before} == before
    Visualization(None, 0, Drawing(), []).save("theirs")  # only its own files are replaced
    Image.new("RGB", (4, 4)).save("theirs/attention.png")
    before = tree(here)
    with pytest.raises(ConfigError, match=r"attention\.png in it was not written by this command"):
        Visualization(None, 0, Drawing(), []).save("theirs")
    assert tree(here) == before


def test_a_conversation_is_appended_to_a_file(here):
    Path("talk.jsonl").write_text('{"messages": []}')  # without a trailing newline
    asked().save("talk.jsonl")
    first, second = Path("talk.jsonl").read_text().splitlines()
    assert first == '{"messages": []}' and "that" in second
    Path("talk.jsonl").write_bytes(b"\xff\xfe")
    refused(asked().save, "talk.jsonl")
    assert Path("talk.jsonl").read_bytes() == b"\xff\xfe"


# -- the parts of embed


def foreign(kind):
    folder = Path("f.parquet.parts")
    if kind == "link":
        folder.symlink_to("theirs")
    elif kind == "file":
        folder.write_text("theirs")
    elif kind == "skipped":
        Path("f.skipped.jsonl").write_text('{"my": "notes"}\n')
    else:
        folder.mkdir()
        (folder / kind).write_text("theirs")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["link", "file", "skipped", "notes.txt", "part-000000.parquet", ".tmp-mine"])
def test_foreign_parts_are_kept(here, kind, overwrite):
    foreign(kind)
    before = tree(here)
    refused(Parts(Path("f.parquet")).check, overwrite)
    opening = Parts(Path("f.parquet")).opened({"source_rows": 1, "limit": None}, 1, overwrite)
    refused(opening.__enter__)
    assert tree(here) == before


def test_only_own_parts_are_removed(here):
    parts = Parts(Path("f.parquet"))
    with parts.opened({"source_rows": 1, "limit": None}, 1, False):
        (parts.folder / "theirs.txt").write_text("theirs")
    assert os.listdir(parts.folder) == ["theirs.txt"]
