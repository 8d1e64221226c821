"""The commands for a fine-tuned classifier, and its report."""

import json
import re
import shutil
from pathlib import Path

import pytest

from nextembed.cli import main

EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "finetune_tiny", f"output_dir={folder}", "train.freeze=[patch_embeddings]"]) == 0
    return folder / "finetune_tiny"


def out_of(line: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(line) == 0
    return capsys.readouterr().out


def test_train_prints_scores_and_usage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = out_of(["train", "finetune_tiny", f"output_dir={tmp_path}", "train.max_steps=1"], capsys)
    assert re.search(r"^Top-1 \d+\.\d % \(95 % range \d+\.\d to \d+\.\d %\) on 32 test images of 9 classes", out, re.M)
    assert 'transformers.pipeline("image-classification", model="' in out and '/finetune_tiny/best")' in out
    assert re.search(
        r"^Verdict: classifier\. Trained on labels.* top-1 \d+\.\d against \d+\.\d %", out.replace("(", " "), re.M
    )
    assert "probe" not in out


def test_evaluate_repeats_the_scores_of_a_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = (run / "scores.json").read_text()
    (run / "scores.json").unlink()
    out = out_of(["evaluate", str(run)], capsys)
    assert (run / "scores.json").read_text() == before
    assert "Most frequent confusions" in out and "top-5" in out and "Saved:" in out
    assert json.loads(before)["sentence"] in out


def test_evaluate_other_splits_data_and_weights(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before, file = (run / "scores.json").read_text(), tmp_path / "scores.json"
    out_of(["evaluate", str(run), "--split", "validation", "-o", str(file), "probe.num_test=20"], capsys)
    found = json.loads(file.read_text())
    assert (found["split"], found["num_images"]) == ("validation", 20)
    alone = tmp_path / "alone"
    shutil.copytree(run / "model", alone)
    out_of(["evaluate", str(alone), "--data", "emoji", "-o", str(file)], capsys)
    found = json.loads(file.read_text())
    assert (found["split"], found["weights"], found["step"], found["num_images"]) == ("test", "raw", None, 157)
    assert (run / "scores.json").read_text() == before  # only scores on its own data are saved in the run


def test_evaluate_a_checkpoint_and_a_run_that_did_not_finish(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "scores.json"
    last = run / "checkpoints" / "step-000002"
    for target, weights in ((last, "raw"), (last / "ema", "ema")):
        out_of(["evaluate", str(target), "-o", str(file)], capsys)
        found = json.loads(file.read_text())
        assert (found["weights"], found["num_images"], found["split"]) == (weights, 32, "test")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    for name in ("best", "model", "ema"):
        shutil.rmtree(unfinished / name)
    out_of(["evaluate", str(unfinished)], capsys)
    assert json.loads((unfinished / "scores.json").read_text())["top1"] == found["top1"]


def test_probe_uses_the_trunk_of_a_classifier(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["probe", str(run), "--output", str(tmp_path / "p.json"), "probe.num_train=64", "probe.layers=[-1]"]
    out = out_of(line, capsys)
    assert "Linear probe" in out and "UNEXPECTED" not in out


def test_evaluate_a_folder_with_some_of_the_classes(
    run: Path, tmp_path: Path, make_images, capsys: pytest.CaptureFixture
) -> None:
    for name in ("symbols", "flags"):
        make_images(tmp_path / "pictures" / name, 3)
    line = ["evaluate", str(run), "--data", str(tmp_path / "pictures"), "-o", str(tmp_path / "s.json")]
    out_of(line, capsys)
    found = json.loads((tmp_path / "s.json").read_text())
    at = {name: found["class_names"].index(name) for name in ("symbols", "flags")}
    assert found["split"] == "train" and [sum(found["confusion"][i]) for i in at.values()] == [3, 3]
    make_images(tmp_path / "pictures" / "zebra", 1)
    assert main(line) == 2
    assert "1 of 3 classes that the model does not know (zebra)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evaluate no/such/run --data emoji", "no such run or checkpoint: no/such/run"),
        ("evaluate RUN --split tset", "--split tset: should be test, validation or train"),
        ("evaluate RUN data.test=none", "data.test: no row has split = none; it is one of: test, train, validation"),
        ("evaluate PRETRAINED --data emoji", "contains no fine-tuned model to score (it is pretrain"),
        ("evaluate BROKEN --data emoji", "cannot load the model in"),
        ("evaluate MODEL", "so name labelled images or rows: --data SOURCE"),
    ],
)  # fmt: skip
def test_errors_are_one_line(line: str, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from nextembed.models.nepa.settings import NepaModel

    NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build(
    ).save_pretrained(tmp_path / "pretrained")  # fmt: skip
    shutil.copytree(run / "model", tmp_path / "model")
    shutil.copytree(run / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"half")
    places = {"RUN": run} | {name: tmp_path / name.lower() for name in ("PRETRAINED", "BROKEN", "MODEL")}
    if "data.test" in line:
        line += " data.validation=none"
    capsys.readouterr()
    assert main([str(places.get(word, word)) for word in line.split()]) == 2
    err = capsys.readouterr().err
    assert words in err and err.strip().count("\n") == 0 and "Traceback" not in err


# -- report


def page(run: Path) -> str:
    from nextembed.runs import open_run

    return open_run(run).report().read_text(encoding="utf-8")


def test_report_of_a_classifier(run: Path) -> None:
    html, scores = page(run), json.loads((run / "scores.json").read_text())
    for heading in ("Accuracy by class", "Confusion matrix", "Most confident mistakes", "Training", "Training setup"):
        assert f"<h2>{heading}</h2>" in html
    for word in ("Verdict", "probe table", "Nearest patches", "Attention maps", "Copying", "Collapsed"):
        assert word not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert '<div class="card verdict classifier">' in html
    assert f"{100 * scores['top1']:.1f} %" in html and scores["sentence"] in html
    assert "<h3>Accuracy</h3>" in html and "everything but patch_embeddings" in html
    assert html.count('<div class="card"><img') == min(12, len(scores["errors"]))
    assert not re.search(r"https?:|@import|url\((?!#)", html) and "<script" not in html
    counts = [int(n) for n in re.findall(r'text-anchor="middle">(\d+)</text>', html)]
    assert sum(counts) == scores["num_images"] == 32  # every image is in the confusion matrix


def test_report_without_scores_with_foreign_names_and_with_many_classes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").unlink()
    assert "Nothing was scored" in page(folder)
    names = [f"{EVIL} {i}" for i in range(60)]
    confusion = [[(i * 7 + j) % 3 for j in range(60)] for i in range(60)]
    scores |= {"class_names": names, "confusion": confusion, "num_images": sum(map(sum, confusion))}
    scores["errors"][0]["key"] = EVIL  # no longer the key of an image
    (folder / "scores.json").write_text(json.dumps(scores))
    html = page(folder)
    assert "<script" not in html and "20 classes with fewer mistakes are left out" in html
    shutil.rmtree(folder / "best")
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints")
    assert "There is no model to look at" in page(folder)
