"""From a trained run to figures: the command line, a decoder for it, exact resume, and both reports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import STATE_FILE

import nextembed
from nextembed import recipes
from nextembed.cli import main
from nextembed.core.config import apply_overrides
from nextembed.runs import open_run
from nextembed.training.checkpoint import last_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a NEPA run and decoders of its latents and predictions."""
    folder = tmp_path_factory.mktemp("runs")
    nepa = recipes.load("nepa_demo_tiny")
    settings = [f"output_dir={folder}", "name=nepa", "train.ema_decay=0.9", "probe.enabled=false", "train.trackers=[]"]
    nextembed.fit(apply_overrides(nepa, settings))
    for source in ("latents", "predictions"):
        nextembed.fit(decoder_config(folder, source, source))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 70, 3), np.uint8)).save(folder / "photo.jpg")
    return folder


def decoder_config(folder: Path, name: str, source: str, *more: str) -> nextembed.RunConfig:
    model = f"model={{kind: vit_nepa, pretrained: {folder / 'nepa/model'}}}"
    settings = [f"output_dir={folder}", f"name={name}", model, f"objective.source={source}", "train.trackers=[]"]
    return apply_overrides(recipes.load("latent_decoder_tiny"), [*settings, *more])


def visualize(*words: object) -> int:
    return main(["visualize", *map(str, words)])


def test_a_decoder_run_saves_model_and_decoder(runs: Path) -> None:
    ours, theirs = (load_file(runs / name / "model/model.safetensors") for name in ("nepa", "latents"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # frozen weights
    size = json.loads((runs / "latents/model/preprocessor_config.json").read_text())["size"]
    assert size == {"height": 24, "width": 24}  # from the pretrained model, not the default
    loaded = nextembed.load_decoder(runs / "latents")
    checkpoint = load_file(last_checkpoint(runs / "latents") / STATE_FILE)  # type: ignore[operator]
    for name, weight in loaded.decoder.state_dict().items():
        assert torch.equal(weight, checkpoint[f"model.objective.decoder.{name}"])
    line = json.loads((runs / "latents/metrics.jsonl").read_text().splitlines()[-1])
    assert {"psnr", "psnr_flat", "loss"} <= line.keys()


def test_a_stopped_decoder_resumes_exactly(runs: Path) -> None:
    def config(name: str) -> nextembed.RunConfig:
        more = ("train.max_steps=5", "train.save_steps=2", "train.keep_checkpoints=9", "optim.schedule=constant")
        return decoder_config(runs, name, "predictions", *more)

    whole = nextembed.fit(config("whole")).dir
    part = nextembed.fit(config("part")).dir
    for gone in ("model", "decoder", "checkpoints/step-000004", "checkpoints/step-000005"):
        shutil.rmtree(part / gone)
    assert last_checkpoint(part) == part / "checkpoints/step-000002"
    nextembed.fit(resume=part)
    ours, theirs = (load_file(run / "decoder/model.safetensors") for run in (whole, part))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_command_line_to_png(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert visualize(runs / "nepa", runs / "photo.jpg") == 0
    assert "Saved:  photo_inside.png" in capsys.readouterr().out
    assert Image.open("photo_inside.png").format == "PNG"
    words = [
        "emoji",
        "--index",
        7,
        "--patch",
        "1,1",
        "--layer",
        "1,-1",
        "--head",
        "2",
        "--attention",
        "full",
        "--weights",
    ]
    words += ["ema", "--decoder", runs / "latents", "--decoder", runs / "predictions", "--size", "32x24", "--known", 3]
    assert visualize(runs / "nepa", *words, "--length", "true", "--foreground", "-o", "out") == 0
    panels = {path.stem for path in Path("out").glob("*.png")}
    assert {"all", "image", "surprise", "attention_layer1_head2", "pca_layer2", "readout3_predictions"} <= panels
    assert {f"rollout{i}" for i in (1, 2, 3)} <= panels and f"{len(panels) - 1} panels" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("where", ["nepa/model", "nepa/ema", "nepa/checkpoints/step-000002", "predictions"])
def test_every_kind_of_checkpoint(runs: Path, where: str) -> None:
    weights = "ema" if where == "nepa/ema" else "raw"
    found = nextembed.visualize(runs / where, runs / "photo.jpg", weights=weights)  # type: ignore[arg-type]
    assert len(found.inside.readouts) == (2 if where == "predictions" else 1)  # a decoder run includes its own


def test_a_decoder_for_other_weights_is_noted(runs: Path) -> None:
    model = nextembed.NepaModel(
        image_size=24, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(5)
    found = nextembed.visualize(model.build(), "emoji", decoders=[runs / "latents"])
    assert found.inside.notes == ["Latents was trained on different weights than these: do not trust its pixels."]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["RUNS/nepa", "RUNS/nepa/config.yaml"], 1, "cannot read the image config.yaml: not an image file"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--patch", "9"], 2, "patch 9 is not in 0..8"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--patch", "a"], 2, "patch 'a' should be a number"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--size", "30"], 2, "size 30x30 is not a multiple"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--size", "3x3x3"], 2, "size '3x3x3' should be pixels"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--layer", "x"], 2, "layer 'x' should be numbers"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--attention", "casual"], 2, "Did you mean 'causal'?"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--weights", "averaged"], 2, "Allowed: ema, raw"),
        (["RUNS/nepa", "RUNS/photo.jpg", "--decoder", "RUNS/nepa"], 2, "contains no finished decoder"),
        (["RUNS/photo.jpg", "RUNS/photo.jpg"], 2, "photo.jpg contains no model"),
    ],
)
def test_bad_input(
    runs: Path, tmp_path: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert visualize(*(word.replace("RUNS", str(runs)) for word in words)) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_decoder_for_another_model_is_rejected(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wide = apply_overrides(
        recipes.load("latent_decoder_tiny"), [f"output_dir={tmp_path}", "name=wide", "model.hidden_size=64"]
    )
    wide_run = nextembed.fit(wide).dir
    capsys.readouterr()
    said = "the decoder in wide was trained for hidden_size 64; the model has 32"
    assert visualize(runs / "nepa", "emoji", "--decoder", wide_run, "-o", tmp_path / "a.png") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "a.png").exists()
    before = (runs / "nepa/report.html").read_bytes()
    assert main(["report", str(runs / "nepa"), "--decoder", str(wide_run)]) == 2
    assert said in capsys.readouterr().err and (runs / "nepa/report.html").read_bytes() == before


def test_reports_show_pixels(runs: Path, capsys: pytest.CaptureFixture) -> None:
    html = (runs / "predictions/report.html").read_text()
    for words in (
        "Latent decoder on emoji",
        '<div class="card verdict decoder">',
        "PSNR of decoded pixels",
        "predictions, decoder of predictions",
    ):
        assert words in html
    assert "Nearest patches" not in html and "There is no probe table" not in html
    assert "<h2>Rollout</h2>" in html and len(html) < 1_000_000
    open_run(runs / "nepa").report()
    assert "the rest, decoder of latents" not in (runs / "nepa/report.html").read_text()
    assert main(["report", str(runs / "nepa"), "--decoder", str(runs / "latents")]) == 0
    assert "the rest, decoder of latents" in (runs / "nepa/report.html").read_text()


def test_missing_pretrained_folder(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "latent_decoder"]) == 2
    err = capsys.readouterr().err
    assert "model.pretrained: " in err and "runs/nepa_demo/model" in err and err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))
