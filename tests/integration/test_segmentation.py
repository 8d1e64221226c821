"""Segmentation end to end: files of a run, exact resume, pretrained weights, one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, pipeline

import nextembed
from nextembed import recipes
from nextembed.cli import main
from nextembed.core.config import apply_overrides
from nextembed.training.loop import Loop

HEADS = {"linear": "emoji_scenes_tiny", "upernet": "nepa_base_ade20k_tiny"}


def config(head: str, tmp_path: Path, *changes: str):
    return apply_overrides(
        recipes.load(HEADS[head]), [f"output_dir={tmp_path}", "train.trackers=[]", "train.device=cpu", *changes]
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_run_leaves_scores_report_and_a_model_for_the_pipeline(head, tmp_path):
    run = nextembed.fit(config(head, tmp_path, "name=seg"))
    scores = json.loads((run.dir / "scores.json").read_text())
    assert scores["task"] == "segmentation" and scores["split"] == "test" and scores["num_images"] == 8
    assert len(scores["per_class"]) == 10 and 0 <= scores["miou"] <= 1
    assert run.metrics["miou"] == scores["miou"] and run.metrics["pixel_accuracy"] == scores["pixel_accuracy"]
    assert 0 <= run.metrics["eval/miou"] <= 1 and run.metrics["train_pixel_accuracy"] >= 0
    best = json.loads((run.dir / "best" / "score.json").read_text())
    assert best["metric"] == ("eval/ema_miou" if head == "linear" else "eval/miou")
    report = (run.dir / "report.html").read_text()
    for words in (
        "Segmentation of emoji scenes",
        "IoU by class",
        "Predictions on images",
        "Validation mIoU",
        "mistakes",
    ):
        assert words in report
    for words in ("probe table", "no pictures", "What it predicts", "Linear probe"):
        assert words not in report
    answers = pipeline("image-segmentation", model=str(run.dir / "best"))(Image.new("RGB", (40, 30), "red"))
    assert {answer["mask"].size for answer in answers} == {(40, 30)}


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_stopped_and_resumed_run_is_bit_identical(head, tmp_path, monkeypatch):
    changes = ["train.max_steps=5", "train.save_steps=2", "train.probe_steps=2", "train.micro_batch_size=4"]
    changes += ["data.scale_range=[0.5, 2.0]", "data.distort_colours=true", "data.max_class_rate=0.75"]
    whole = nextembed.fit(config(head, tmp_path, "name=whole", *changes))

    class Stopped(Exception):
        pass

    window = Loop.window

    def stop(self, batches):
        if self.step == 3:
            raise Stopped
        return window(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "window", stop)
        with pytest.raises(Stopped):
            nextembed.fit(config(head, tmp_path, "name=parts", *changes))
    parts = nextembed.fit(resume=tmp_path / "parts")
    for folder in ("model", "best"):
        one, two = (load_file(run.dir / folder / "model.safetensors") for run in (whole, parts))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((whole.dir / "scores.json").read_text()) == json.loads((parts.dir / "scores.json").read_text())


@pytest.mark.parametrize("head", HEADS)
def test_a_segmenter_starts_from_a_model_pretrained_on_scenes(head, tmp_path):
    changes = ["data={kind: emoji_scenes, scene_size: 32, num_scenes: 16}", "model.image_size=32", "name=pre"]
    changes += ["model.num_hidden_layers=4", f"output_dir={tmp_path}", "train.trackers=[]"]
    before = nextembed.fit(apply_overrides(recipes.load("nepa_demo_tiny"), changes))
    start = ["model.architecture=null", f"model.pretrained={before.dir / 'model'}", "optim.learning_rate=1e-20"]
    run = nextembed.fit(config(head, tmp_path, "name=seg", *start))
    trunk = run.trained.vit_nepa if head == "linear" else run.trained.backbone
    stored = load_file(before.dir / "model" / "model.safetensors")
    for name, value in trunk.named_parameters():
        if not name.startswith("fpn."):
            torch.testing.assert_close(value, stored[f"vit_nepa.{name}"])
    # A resumed run does not need the folder of the pretrained model.
    (before.dir / "model").rename(before.dir / "moved")
    nextembed.fit(apply_overrides(run.config, ["train.max_steps=3"]), resume=run.dir)


def cli(capsys, *words: str) -> tuple[int, str]:
    code = main(list(words))
    return code, capsys.readouterr().err.strip()


@pytest.fixture
def masks(tmp_path):
    """A folder with twelve images and masks of three classes."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"data/images/{i}.jpg")
        Image.fromarray(rng.integers(0, 3, (32, 32), dtype=np.uint8)).save(tmp_path / f"data/masks/{i}.png")
    return tmp_path / "data"


def words_for(masks: Path, *changes: str) -> list[str]:
    data = f"data={{kind: segmentation, source: {masks}, classes: [a, b, c], num_workers: 0, split: 'train[:-4]',"
    data += " validation: 'train[-4:]', test: 'train[-4:]'}"
    return ["train", HEADS["linear"], data, "train.trackers=[]", f"output_dir={masks.parent / 'runs'}", *changes]


def test_own_images_with_masks_train_from_the_command_line(masks, capsys):
    assert main(words_for(masks, "name=own")) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out and "over 3 classes" in out and 'pipeline("image-segmentation"' in out
    assert main(["evaluate", str(masks.parent / "runs/own"), "--split", "validation"]) == 0
    assert "share of the pixels" in capsys.readouterr().out
    assert main(["report", str(masks.parent / "runs/own")]) == 0


def test_invalid_input_is_one_line_and_leaves_no_files(masks, tmp_path, capsys):
    runs = masks.parent / "runs"
    BertConfig().save_pretrained(tmp_path / "bert")
    part = "model.architecture=null"
    cases = [
        (["data.classes=null"], "needs the names of the classes by id"),
        (["data.classes=[a, b]"], "mask: class 2 is out of range: 2 classes are 0..1"),
        (["data.class_file=none.json", "data.classes=null"], "cannot read none.json"),
        (["data.validation=validation"], "split 'validation' is not known"),
        ([part, f"model.pretrained={tmp_path / 'bert'}"], "is a model of type 'bert', not vit_nepa"),
        (["objective.class_weights=[1.0]"], "1 weights for 3 classes"),
        (["objective.kind=classification"], "for this objective set model.kind=vit_nepa_classifier"),
        (["train.lora={rank: 2}", "model.head=upernet", "model.head_width=16"], "UPerNet's pyramid has to learn"),
    ]
    for changes, words in cases:
        code, err = cli(capsys, *words_for(masks, *changes))
        assert code == 2 and words in err and "\n" not in err, (changes, err)
        assert not runs.exists() or not list(runs.iterdir()), changes
    Image.new("L", (9, 9)).save(masks / "masks/3.png")
    code, err = cli(capsys, *words_for(masks))
    assert code == 2 and "1 of 8 images looked at cannot be used: images/3.jpg: its mask is 9x9 pixels" in err
    (masks / "masks/3.png").unlink()
    code, err = cli(capsys, *words_for(masks))
    assert code == 2 and "images of split 'train' have no mask: images/3.jpg (there is no masks/3.png)" in err


def test_a_head_for_other_classes_is_rejected(masks, capsys):
    assert main(words_for(masks, "name=own")) == 0
    capsys.readouterr()
    model = masks.parent / "runs/own/model"
    changes = ["model.architecture=null", f"model.pretrained={model}", "data.classes=[a, b, d]", "name=other"]
    code, err = cli(capsys, *words_for(masks, *changes))
    assert code == 2 and "has a head for 3 classes (a, b, c), the data has 3 (a, b, d); set model.new_head=true" in err
    assert not (masks.parent / "runs/other").exists()
    assert main(words_for(masks, *changes, "model.new_head=true")) == 0
