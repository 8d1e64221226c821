"""A tiny image generator, trained and scored on the command line: `evaluate --task text_to_image`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from emu_tiny import save_tiny_emu
from PIL import Image
from safetensors.torch import load_file, save_file

import nextembed
from nextembed.cli import main
from nextembed.evaluation.images import retrieval_ranks
from nextembed.evaluation.language.speaker import Speaker

COLOURS = ("red", "lime", "blue")
FEW = ["num_inference_steps=2", "draws=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `painter`, three images, and a file with their captions."""
    path = tmp_path_factory.mktemp("paint")
    assert main(["train", "emu_emoji_decoder_tiny", f"output_dir={path}", "name=painter", "train.max_steps=1"]) == 0
    for colour in COLOURS:
        Image.new("RGB", (20, 12), colour).save(path / f"{colour}.png")
    rows = [{"image": f"{colour}.png", "captions": [f"a {colour} square"]} for colour in COLOURS]
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def evaluate(*words: str) -> int:
    return main(["evaluate", *words[:1], "--task", "text_to_image", *FEW, *words[1:]])


def pictures(folder: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(Path(folder).glob("*.png"))]


def test_an_image_generator_is_scored(capsys: pytest.CaptureFixture) -> None:
    words = ["--data", "captions.jsonl", "--paintings", "painted", "-o", "scores.json", "batch_size=2"]
    assert evaluate("painter", *words) == 0
    out = capsys.readouterr().out
    for said in ("retrieval R@1", "Frechet distance", "model's own visual encoder", "chance is 33.3 %", "scores.json"):
        assert said in out
    painted = pictures("painted")
    assert [image.shape for image in painted] == [(16, 16, 3)] * 3
    pipeline = nextembed.EmuPipeline.from_pretrained("painter")
    own = pipeline(["a lime square"], num_inference_steps=2, seed=1, progress=False)
    assert np.abs(np.asarray(own).astype(int) - painted[1]).max() <= 1
    # The scores recomputed from the files.
    scores = json.loads(Path("scores.json").read_text())
    encode = Speaker(pipeline.model, pipeline.processor).features_of
    real = encode([Image.open(f"{colour}.png") for colour in COLOURS])
    ranks = retrieval_ranks(encode([Image.fromarray(image.astype(np.uint8)) for image in painted]), real)
    assert [answer["rank"] for answer in scores["answers"]] == ranks.tolist()
    values = {metric["name"]: metric["value"] for metric in scores["metrics"]}
    assert values["retrieval R@1"] == pytest.approx(100 * (ranks == 1).mean())
    assert values["mean rank"] == pytest.approx(ranks.mean()) and values["Frechet distance"] > 0


def test_images_do_not_depend_on_batches_or_folder_names() -> None:
    assert evaluate("painter/model", "--data", "captions.jsonl", "--paintings", "alone", "batch_size=1") == 0
    assert evaluate("painter", "--data", "captions.jsonl", "--paintings", "together") == 0
    for one, other in zip(pictures("alone"), pictures("together"), strict=True):
        assert np.abs(one - other).max() <= 1


def test_errors_are_one_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    save_tiny_emu(folder / "speaker")
    shutil.copytree(folder / "painter" / "model", folder / "half")
    state = load_file(folder / "half" / "model.safetensors")
    del state["regression_head.weight"]
    save_file(state, folder / "half" / "model.safetensors", {"format": "pt"})
    (folder / "long.jsonl").write_text(json.dumps({"image": "red.png", "captions": ["a word " * 300]}))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.jsonl").write_text(json.dumps({"image": "broken.png", "captions": ["a cat"]}))
    capsys.readouterr()
    before = sorted(folder.rglob("*"))
    for target, data, more, said in (
        ("speaker", "captions", [], "visual decoder"),
        ("nowhere", "captions", [], "no such run or checkpoint: nowhere"),
        ("half", "captions", [], "lacks parameter regression_head.weight"),
        ("painter", "long", [], "the language model reads 128"),
        ("painter", "broken", [], "an image cannot be read"),
        ("painter", "captions", ["--paintings", "red.png/x"], "cannot write red.png/x"),
        ("painter", "captions", ["weights=ema"], "does not apply to text_to_image"),
        ("painter", "captions", ["features=nowhere"], "nowhere"),
    ):
        assert evaluate(target, "--data", f"{data}.jsonl", *more) in (1, 2), target
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    assert sorted(folder.rglob("*")) == before
