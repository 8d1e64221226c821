"""Folders that commands fill file by file, and foreign folders: files of unknown origin are kept, and nothing is
written through links that point outside."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_folders import make_run

from nextembed.cli.app import main
from nextembed.comparison.compare import compare
from nextembed.comparison.place import held
from nextembed.core.belonging import check_links, check_own_folder
from nextembed.core.probe_table import ProbeTable
from nextembed.data.sharding import Journal, check_folder
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features.embed_many import embed_many
from nextembed.evaluation.features.shard_writing import check_output
from nextembed.evaluation.features.stored import files_in
from nextembed.models.nepa.settings import NepaModel
from nextembed.report.generated import from_training
from nextembed.runs import open_run
from nextembed.studio.folders import is_features
from nextembed.training.checkpoint import write_model
from nextembed.training.folder import opened

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
FEATURES = {"shard_rows": 2, "limit": 4, "num_workers": 0}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    part = NepaModel(**TINY)
    write_model(folder, part.build(), None, part.processor())
    return folder


def compared(folder):
    with held(folder):
        pass


FILLED = {
    "embed": lambda folder: check_output(folder, overwrite=True),
    "shard": check_folder,
    "compare": compared,
}


def refused(function, *words):
    with pytest.raises(ConfigError) as caught:
        function(*words)
    said = str(caught.value)
    assert said and "\n" not in said
    return said


@pytest.mark.parametrize(
    "file",
    ["thesis.tex", "comparison.csv", "features-mine.parquet", "features-000000.parquet", "nepa/seed-0/run/a", "lock",
     "nepa/seed-0/run/checkpoints/a", "train-000000.tar", ".lock", "features.skipped.jsonl", "rows.skipped.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("name", FILLED)
def test_a_foreign_folder_is_not_filled(tmp_path, monkeypatch, name, file) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs" / file).parent.mkdir(parents=True)
    (tmp_path / "theirs" / file).write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    before = tree(tmp_path)
    for folder in ("theirs", "link", "theirs/..", ".", "..", "/", f"theirs/{file}", f"theirs/{file}/x", "/dev/null/x"):
        refused(FILLED[name], Path(folder))
        assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ["", "garbage", "[1]\nx\n", '{"a": 1}\n', '{"settings": 1}\n', "null", "\x00"])
@pytest.mark.parametrize(
    "name, mark",
    [("embed", "features.json"), ("embed", "features.partial"), ("shard", "index.partial"),
     ("compare", "settings.json")],
)  # fmt: skip
def test_a_file_with_a_known_name_does_not_make_a_folder_ours(tmp_path, name, mark, text) -> None:
    (tmp_path / "features-000007.parquet").write_text("theirs")
    (tmp_path / mark).write_text(text)
    before = tree(tmp_path)
    refused(FILLED[name] if name != "shard" else lambda folder: Journal(folder, {"data": {}}), tmp_path)
    assert tree(tmp_path) == before


def test_a_partly_filled_folder_can_be_continued(tmp_path) -> None:
    check_own_folder(tmp_path / "new", ("mark",), "lock")
    assert not (tmp_path / "new").exists()
    (tmp_path / "lock").touch()
    check_own_folder(tmp_path, ("mark",), "lock")
    (tmp_path / "other").touch()
    refused(check_own_folder, tmp_path, ("mark",), "lock")
    (tmp_path / "mark").touch()
    check_own_folder(tmp_path, ("mark",), "lock")


def test_features_are_not_written_beside_foreign_files(model, tmp_path) -> None:
    """Only files left from earlier settings are removed."""
    out = tmp_path / "out"
    embed_many(str(model), "emoji", out, **FEATURES)
    embed_many(str(model), "emoji", out, overwrite=True, **(FEATURES | {"shard_rows": 4}))
    assert sorted(os.listdir(out)) == ["features-000000.parquet", "features.json"]
    (out / "features-mine.parquet").write_text("theirs")
    before = tree(out)
    said = refused(lambda: embed_many(str(model), "emoji", out, overwrite=True, **FEATURES))
    assert "features-mine.parquet, which nextembed embed did not write" in said and tree(out) == before


# -- links in foreign folders


LINKS = ["config.yaml", "metrics.jsonl", "skipped.jsonl", "environment.json", "checkpoints", "samples", "model/a",
         "tensorboard", "checkpoints/step-000001", ".lock", "nowhere"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_run_with_a_link_to_the_outside_is_not_trained(tmp_path, name) -> None:
    (tmp_path / "mine" / "step-000001").mkdir(parents=True)
    (tmp_path / "mine" / "letter").write_text("mine")
    run = tmp_path / "sent" / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "config.yaml").write_text("name: run\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / ("mine" if "." not in name else "mine/letter"))
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"is a link to .*, outside of the folder"), opened(run, resume=True):
        pass
    assert tree(tmp_path) == before


def test_links_that_stay_inside_are_allowed(tmp_path) -> None:
    run = tmp_path / "disk" / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "last").symlink_to("checkpoints/step-000001")
    (tmp_path / "runs").symlink_to("disk")
    (tmp_path / "here").symlink_to(run)
    for folder in (run, tmp_path / "runs" / "run", tmp_path / "here"):
        check_links(folder)
        with opened(folder, resume=True):
            pass
    (run / "round").symlink_to("round")
    refused(check_links, run)


@pytest.mark.parametrize(
    "line, name",
    [("report RUN", "report.html"), ("probe RUN", "probe.json"), ("evaluate RUN", "scores.json"),
     ("evaluate RUN --task samples features=RUN", "samples.json"),
     ("evaluate RUN --task samples features=RUN", "samples.png")],
)  # fmt: skip
def test_files_of_a_run_are_not_written_through_a_link(model, tmp_path, capsys, line, name) -> None:
    run = make_run(tmp_path / "sent" / "run", "pretraining")
    shutil.copytree(model, run / "model")
    (tmp_path / "letter").write_text('{"mine": 1}')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to("../../letter")
    before = tree(tmp_path)
    assert main([word.replace("RUN", str(run)) for word in line.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name} is a link to ../../letter" in said and tree(tmp_path) == before


def test_a_report_may_be_written_elsewhere(tmp_path) -> None:
    run = make_run(tmp_path / "run", "pretraining")
    (run / "report.html").symlink_to(tmp_path / "letter")
    assert open_run(run).report(tmp_path / "page.html").is_file() and not (tmp_path / "letter").exists()


def test_sample_scores_do_not_replace_foreign_images(model, tmp_path, capsys) -> None:
    run = make_run(tmp_path / "run", "pretraining")
    shutil.copytree(model, run / "model")
    (tmp_path / "cat.png").write_text("mine")
    for name in ("cat.json", "cat.png"):
        words = ["evaluate", str(run), "--task", "samples", f"features={run}", "-o", str(tmp_path / name)]
        assert main(words) == 2
        assert "cat.png" in capsys.readouterr().err and (tmp_path / "cat.png").read_text() == "mine"


# -- pipes and file names in foreign folders


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl", ".lock", "probe.json", "checkpoints/step-000001/a"])
def test_a_run_with_a_pipe_is_rejected_without_waiting(tmp_path, capsys, name) -> None:
    run = make_run(tmp_path / "run", "pretraining")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert main(["train", "--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name} is no file but a pipe, socket or device" in said


def test_pipes_are_neither_features_nor_images(tmp_path, capsys) -> None:
    os.mkfifo(tmp_path / "f.parquet")
    os.mkfifo(tmp_path / "step-000001.png")
    assert main(["search", str(tmp_path / "f.parquet"), "a"]) == 2
    assert "no such features file" in capsys.readouterr().err
    assert not is_features(tmp_path / "f.parquet")
    assert from_training(tmp_path, (8, 8)) == []


@pytest.mark.parametrize("make", ["bomb", "cut", "wide", "text"])
def test_an_invalid_sample_image_is_reported(tmp_path, make) -> None:
    """Its size is checked before it is decoded."""
    file = tmp_path / "step-000001.png"
    Image.new("L", {"bomb": (20_000, 20_000), "wide": (80_000, 8)}.get(make, (16, 8))).save(file)
    if make == "cut":
        file.write_bytes(file.read_bytes()[:42])
    elif make == "text":
        file.write_text("no picture")
    with pytest.raises(
        DataError, match=r"step-000001.png (is not an image|does not contain images of 8 x 8)"
    ) as caught:
        from_training(tmp_path, (8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.parquet", "/etc/secret.parquet", "..", "a/b.parquet", 5, None])
def test_a_list_of_features_cannot_refer_to_files_elsewhere(tmp_path, name) -> None:
    (tmp_path / "secret.parquet").write_bytes(b"PAR1")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "features.json").write_text(json.dumps({"files": [{"file": name}]}))
    assert "features.json" in refused(files_in, tmp_path / "f")


# -- comparisons of existing runs


def scored(folder: Path, model: Path, linear: float) -> Path:
    """A run with this probe accuracy."""
    run = make_run(folder, "pretraining")
    shutil.copytree(model, run / "model")
    table = ProbeTable.load(run / "probe.json")
    for row in table.rows:
        row.accuracy = linear
    table.save(run / "probe.json")
    return run


def test_runs_with_the_same_name_keep_their_own_scores(model, tmp_path, monkeypatch) -> None:
    """Names alone do not identify a run: other folders, later training, names that differ in a slash."""
    monkeypatch.chdir(tmp_path)
    first = [scored(tmp_path / "x" / name, model, value) for name, value in (("a", 0.1), ("b", 0.2))]
    second = [scored(tmp_path / "y" / name, model, value) for name, value in (("a", 0.3), ("b", 0.4))]
    third = [scored(tmp_path / name, model, value) for name, value in (("p-q/r", 0.5), ("p/q-r", 0.6), ("z/r", 0.7))]

    def found(runs: list[Path]) -> list[float]:
        return [one.values["linear"] for one in compare(runs, settings={"jobs": 0, "finetune_steps": 0}).runs]

    assert found(first) == [0.1, 0.2]
    assert found(second) == [0.3, 0.4]
    assert found(third) == [0.5, 0.6, 0.7]
    shutil.rmtree(first[0])
    scored(first[0], model, 0.9)
    assert found(first) == [0.9, 0.2]
    said = refused(lambda: compare("nepa_demo_tiny", ["nepa"], "runs/compare-runs", {"images_seen": 8}))
    assert "runs that were there" in said
    before = tree(tmp_path)
    refused(lambda: compare("nepa_demo_tiny", ["nepa"], "x", {"images_seen": 8}))
    refused(lambda: compare(first, folder="y"))
    assert tree(tmp_path) == before
