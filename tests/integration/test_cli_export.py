"""`export`, `convert` and `push` end to end on tiny models: files, output and errors."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel, ViTImageProcessor

from nextembed.cli import main
from nextembed.models.nepa import ViTNepaConfig, ViTNepaForImageClassification, ViTNepaForPreTraining

SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16)
REFERENCE = Path(__file__).parents[1] / "parity" / "reference"


def save(kind: type, folder: Path, **settings: object) -> Path:
    torch.manual_seed(0)
    model = kind(ViTNepaConfig(patch_size=4, layerscale_value=1.0, initializer_range=0.2, **SIZES, **settings))
    model.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save(ViTNepaForPreTraining, folder / "model")
    values = {"data": {"kind": "images", "source": "emoji", "num_workers": 0}, "train": {"max_steps": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "environment.json").write_text("{}")
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture):
    def call(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        found = capsys.readouterr()
        if code:
            assert found.err.count("\n") == 1 and "Traceback" not in found.err
        return found.err if code else found.out

    return call


def test_export_of_a_run(run: Path, tmp_path: Path, said) -> None:
    out = said("export", run, "-o", tmp_path / "new" / "model.onnx", "--layer", "-1", "--opset", "18")
    assert "opset 18" in out and "pixel_values -> last_hidden_state, embedding" in out
    assert float(re.search(r"difference from PyTorch (\S+) \(", out)[1]) < 1e-4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.onnx"]


def test_int8_reports_its_accuracy_loss(run: Path, tmp_path: Path, said) -> None:
    out = said("export", run, "-o", tmp_path / "small.onnx", "--int8", "--with-preprocessing")
    assert re.search(r"Speed: +\d+\.\d\d times the float file's", out)
    assert re.search(r"cosine 0\.\d{5} \(lowest 0\.\d{5}\) .*; 94 images of emoji", out)
    assert re.search(r"linear probe: \d+\.\d % -> \d+\.\d % on 157 test images", out) and "kNN: " in out
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_int8_classifier_on_labelled_images(tmp_path: Path, said) -> None:
    names = {0: "blue", 1: "red"}
    ids = {"blue": 0, "red": 1}
    folder = save(
        ViTNepaForImageClassification, tmp_path / "model", add_pooling_layer=True, id2label=names, label2id=ids
    )
    for split in ("train", "test"):
        for name in ids:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(6):
                color = (40 * i, 0, 200) if name == "blue" else (200, 40 * i, 0)
                Image.new("RGB", (16, 16), color).save(tmp_path / "data" / split / name / f"{i}.png")
    out = said("export", folder, "-o", tmp_path / "c.onnx", "--int8", "--data", tmp_path / "data")
    assert re.search(r"logits: cosine [01]\.\d{5}", out)
    assert re.search(r"top-1: \d+\.\d % -> \d+\.\d % on 12 test images", out)


def test_convert(tmp_path: Path, said) -> None:
    weights = REFERENCE / "stable_pretraining" / "gated" / "model.safetensors"
    out = said("convert", weights, tmp_path / "ours", "--image-size", "24")
    assert (
        "stable-pretraining layout, SptNepaForPreTraining" in out and "width 32, 2 layers, 2 heads, 24 px, full" in out
    )
    assert "normalise pixels as in training" in out
    assert AutoModel.from_pretrained(tmp_path / "ours").config.model_type == "spt_nepa"
    said("convert", tmp_path / "ours", tmp_path / "theirs", "--to", "stable-pretraining")
    assert {p.name for p in (tmp_path / "theirs").iterdir()} == {"arguments.json", "model.safetensors"}


def test_push_dry_run(run: Path, tmp_path: Path, said) -> None:
    out = said("push", run, "me/tiny", "--dry-run", tmp_path / "hub")
    assert "README.md" in out and "nextembed push" in out and "no licence" in out
    text = (tmp_path / "hub" / "README.md").read_text()
    assert re.search(r"Recipe `\w+` of nextembed", text)
    assert str(run.parent) not in text


def test_push_without_token(run: Path, said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextembed.export.hub.get_token", lambda: None)
    assert "run `hf auth login`" in said("push", run, "me/tiny", code=1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("export RUN -o m.onnx --opset 11", "ONNX opset 11 is too old: the lowest that works is 18"),
        ("export RUN -o m.pt2 --opset 18", "--opset applies to ONNX only"),
        ("export RUN -o model", "name it .onnx or .pt2"),
        ("export RUN -o m.pt2 --int8", "--int8 needs ONNX"),
        ("export RUN -o m.onnx --data emoji", "--data needs --int8"),
        ("export RUN -o m.onnx --task classification", "has no classifier"),
        ("export RUN -o m.onnx --weights ema", "has no ema weights; there is raw"),
        ("export RUN -o m.onnx --size 17", "size 17,17 is not a multiple of the patch size 4x4"),
        ("export RUN -o m.onnx --size big", "--size is HEIGHT,WIDTH in pixels, not 'big'"),
        ("export RUN -o m.onnx --layer 5", "layer 5 is not in 0..1"),
        ("export OTHER -o m.onnx", "contains a model of type 'bert'; this needs vit_nepa or spt_nepa"),
        ("export BROKEN -o m.onnx", "cannot load the model in"),
        ("export nowhere -o m.onnx", "no such run or checkpoint: nowhere"),
        ("export RUN -o m.onnx --pooling max", "max"),
        ("convert OTHER out --to official", "contains a model of type 'bert'"),
        ("convert RUN out --to stable-pretraining", "has no begin token in attention"),
        ("convert RUN out --to onnx", "onnx"),
        ("push OTHER me/x --dry-run out", "contains a model of type 'bert'"),
        ("push RUN a/b/c --dry-run out", "is not a repository name"),
    ],
)
def test_errors_are_one_line_and_leave_no_files(
    line: str, words: str, run: Path, tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("other", '{"model_type": "bert"}'), ("broken", '{"model_type": "vit_nepa"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    line = line.replace("RUN", str(run)).replace("OTHER", "other").replace("BROKEN", "broken")
    assert words in said(*line.split(), code=2)
    assert {p.name for p in tmp_path.rglob("*")} == {"other", "broken", "config.json"}


def test_preprocessing_must_be_known(run: Path, tmp_path: Path, said) -> None:
    shutil.copytree(run / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    words = said("export", tmp_path / "bare", "-o", tmp_path / "m.onnx", "--with-preprocessing", code=2)
    assert "preprocessor_config.json" in words
    assert [p.name for p in tmp_path.iterdir()] == ["bare"]
