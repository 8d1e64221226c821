"""A damaged checkpoint is a one-line error with the file and the previous checkpoint; nothing is loaded or changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextembed.cli import main
from nextembed.training.checksums import write_checksums

NEWEST, BEFORE = "checkpoints/step-000004", "checkpoints/step-000002"
WORDS = ["nepa_demo_tiny", "train.max_steps=6", "train.save_steps=2", "train.keep_checkpoints=3", "train.ema_decay=0.9",
         "train.trackers=[]", "train.probe_steps=null", "train.device=cpu", "probe.enabled=false", "data.num_workers=0",
         "objective.target=teacher", "train.log_steps=1"]  # fmt: skip
STATE = "state/shard-00001-model-00001-of-00001.safetensors"
FILES = ["config.json", "model.safetensors", "preprocessor_config.json", STATE, "progress.json",
         "ema/model.safetensors", "checksums.json"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main(["train", *WORDS, f"output_dir={folder}", "name=run"]) == 0
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path):
    """The run in the state after step 4."""
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    for name in ("checkpoints/step-000006", "model", "ema"):
        shutil.rmtree(copy / name)
    return copy


def everything(folder: Path) -> dict[str, bytes]:
    """The contents of a folder, except locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(run: Path, capsys, resume: Path | None = None) -> str:
    """The one-line error of a resume that fails."""
    capsys.readouterr()
    code = main(["train", "--resume", str(resume or run)])
    said = capsys.readouterr().err.strip()
    assert code in (1, 2) and said.count("\n") == 0 and said.startswith("nextembed: "), said
    assert "unexpected" not in said
    return said


def same_end(run: Path, whole: Path) -> None:
    for name in ("model/model.safetensors", "ema/model.safetensors", f"checkpoints/step-000006/{STATE}"):
        found, expected = load_file(run / name), load_file(whole / name)
        assert found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items()), name


def empty(file):
    file.write_bytes(b"")


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def missing(file):
    file.unlink()


def a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [empty, truncated, flipped, missing, a_folder], ids=lambda way: way.__name__)
def test_damage_is_reported_with_the_previous_checkpoint(run, capsys, name, damage):
    damage(run / NEWEST / name)
    before = everything(run)
    said = refused(run, capsys)
    assert f"{run / NEWEST}/" in said and (name in said or name == "checksums.json")
    assert f"resume from the previous one: nextembed train --resume {run / BEFORE}" in said
    assert everything(run) == before


def test_resuming_as_suggested_gives_the_same_result(run, whole, capsys):
    flipped(run / NEWEST / STATE)
    said = refused(run, capsys)
    assert main(["train", "--resume", said.rpartition(" ")[2]]) == 0
    same_end(run, whole)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step-000002", "step-000004", "step-000006", "unused-step-000004"}
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_an_intact_checkpoint_that_is_skipped_is_kept(run, whole):
    kept = everything(run / NEWEST)
    for _ in range(2):
        assert main(["train", "--resume", str(run / BEFORE)]) == 0
    same_end(run, whole)
    assert everything(run / "checkpoints/unused-step-000004") == kept
    assert (run / "checkpoints/unused-step-000004-2").is_dir()


def test_no_intact_or_no_such_checkpoint(run, capsys):
    for name in (NEWEST, BEFORE):
        empty(run / name / "progress.json")
    assert refused(run, capsys).endswith("no earlier checkpoint is intact")
    said = refused(run, capsys, run / "checkpoints/step-000003")
    assert "no such checkpoint" in said and "step-000002, step-000004" in said


def rewritten(change):
    def write(file):
        value = json.loads(file.read_text())
        file.write_text(json.dumps(change(value)))

    return write


def tensors(change):
    def write(file):
        value = load_file(file)
        change(value)
        save_file(value, file, metadata={"format": "pt"})

    return write


def drop_one(values):
    del values[sorted(values)[0]]


def grow_one(values):
    name = sorted(values)[0]
    values[name] = torch.zeros(3, *values[name].shape)


def of_rank(change):
    return rewritten(lambda v: v | {"ranks": [v["ranks"][0] | change]})


READ = ["config.json", STATE, "progress.json"]  # read when a run resumes
FOREIGN = {  # changed files with matching checksums
    **{f"{name} empty": (name, empty) for name in READ},
    **{f"{name} half": (name, truncated) for name in READ},
    "tensors lack one": (STATE, tensors(drop_one)),
    "a tensor of another shape": (STATE, tensors(grow_one)),
    "one tensor more": (STATE, tensors(lambda v: v.update({"model.more": torch.zeros(1)}))),
    "a moment of another shape": (STATE, tensors(lambda v: v.update({sorted(v)[1]: torch.zeros(3, 5)}))),
    "code": (STATE, lambda file: torch.save(Path("x"), file)),
    "no tensors": (STATE, missing),
    "no progress": ("progress.json", missing),
    "progress is a list": ("progress.json", rewritten(lambda v: [v])),
    "progress with more": ("progress.json", rewritten(lambda v: v | {"more": 1})),
    "no ranks": ("progress.json", rewritten(lambda v: v | {"ranks": []})),
    "ranks are words": ("progress.json", rewritten(lambda v: v | {"ranks": ["a"]})),
    "a place that is a word": ("progress.json", of_rank({"data": {"next": "a"}})),
    "a place before the first": ("progress.json", of_rank({"data": {"next": -1}})),
    "no place": ("progress.json", rewritten(lambda v: v | {"ranks": [{"averages": {}}]})),
    "means that are words": ("progress.json", of_rank({"averages": {"loss.0": ["a", 1]}})),
    "nested": ("progress.json", lambda file: file.write_text("[" * 100_000)),
    "another step": ("progress.json", rewritten(lambda v: v | {"step": 3})),
    "a step that is a word": ("progress.json", rewritten(lambda v: v | {"step": "four"})),
    "config is a list": ("config.json", rewritten(lambda v: [v])),
    "config of other types": ("config.json", rewritten(lambda v: v | {"hidden_size": "wide"})),
    "config of another model": ("config.json", rewritten(lambda v: v | {"hidden_size": 2 * v["hidden_size"]})),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_changed_content_with_matching_checksums_is_a_one_line_error(run, capsys, case):
    name, change = FOREIGN[case]
    change(run / NEWEST / name)
    write_checksums(run / NEWEST)
    before = everything(run / "checkpoints")
    said = refused(run, capsys)
    assert str(run / NEWEST) in said and (name.partition("/")[0] in said or name == "config.json")
    assert everything(run / "checkpoints") == before


def test_invalid_checksum_files(run, capsys):
    for text in ("{}", "[]", "3", '{"config.json": 1}', "[" * 100_000):
        (run / NEWEST / "checksums.json").write_text(text)
        assert str(run / NEWEST) in refused(run, capsys)
