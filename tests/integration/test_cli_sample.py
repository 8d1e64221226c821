"""`sample` on the command line: files, output and errors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nextembed
from nextembed import SampleSettings
from nextembed.cli import main
from nextembed.core.sample_scores import SampleScores
from nextembed.inference.measuring import SampleEval
from nextembed.inference.samples import Sampler, sheet
from nextembed.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A VAR trained for two steps at 12 px with an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("sampled")
    return nextembed.fit("var_demo_tiny", output_dir=str(folder), probe={"enabled": False})


def test_a_sheet_cycles_through_classes_and_depends_on_the_seed(run: Run, tmp_path: Path, capsys) -> None:
    words = ["sample", str(run.dir), "--num", "10", "--batch-size", "4", "--guidance", "2", "--device", "cpu"]
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert main([*words, "-o", str(file), "--seed", str(seed)]) == 0
        assert f"Saved:  {file} (10 images)" in capsys.readouterr().out
    first, again, other = (np.asarray(Image.open(file)) for file in files)
    assert first.shape == (3 * 98 + 2, 4 * 98 + 2, 3)  # four columns of 12 px, enlarged eight times
    assert (first == again).all() and (first != other).any()
    sampler = Sampler(run.dir, device="cpu")
    assert sampler.labels(10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    drawn = sampler(sampler.labels(10), SampleSettings(guidance=2.0), batch_size=4)
    assert drawn.dtype == torch.uint8 and drawn.shape == (10, 3, 12, 12)
    assert (np.asarray(sheet(drawn)) == first).all()


def test_a_folder_and_classes_by_name(run: Run, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "drawn"
    words = ["sample", str(run.dir), "-o", str(folder), "--num", "2", "--class", "food & drink", "--class", "0"]
    assert main(words) == 0
    assert [file.name for file in sorted(folder.iterdir())] == ["00000.png", "00001.png"]
    assert Image.open(folder / "00001.png").size == (12, 12)
    assert main(words) == 2 and "exists; name a new folder" in capsys.readouterr().err
    assert Sampler(run.dir).labels(3, ["food & drink", "0"]).tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--class", "9"], "class 9: the model knows 9 classes, from 0 to 8"),
        (["--class", "foods & drink"], "class 'foods & drink' is not known. Did you mean 'food & drink'?"),
        (["--top-p", "0"], "sample.top_p: should be greater than 0"),
        (["--columns", "2", "-o", "somewhere"], "--columns and --nearest need a contact sheet: -o sheet.png"),
        (["--weights", "best"], "has no best weights"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, capsys, monkeypatch, more: list[str], words: str):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run.dir), *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_nearest_training_images_are_shown_below(run: Run, tmp_path: Path, capsys) -> None:
    sampler = Sampler(run.dir, device="cpu")
    data = sampler.data()
    assert data is not None
    samples = data.eval_samples("train", image_size=12, num_channels=3)
    known = sampler.plain(torch.stack([samples[i]["pixel_values"] for i in (3, 77)]))
    found, distance = sampler.nearest(known)
    assert torch.equal(found, known) and (distance < 0.1).all()
    shifted, distance = sampler.nearest((known.float() + 2).clamp(max=255).to(torch.uint8))
    assert torch.equal(shifted, known) and (distance <= 2.01).all() and distance.max() > 0.5
    mirrored, distance = sampler.nearest(known.flip(-1))  # training includes flipped images
    assert torch.equal(mirrored, known.flip(-1)) and (distance == 0).all()
    file = tmp_path / "a.png"
    assert main(["sample", str(run.dir), "--num", "3", "--columns", "2", "--nearest", "-o", str(file)]) == 0
    assert "Distance to the nearest training image:" in capsys.readouterr().out
    page = np.asarray(Image.open(file))
    assert page.shape == (4 * 98 + 2, 2 * 98 + 2, 3) and (page[-95:, -95:] == 255).all()  # an empty cell


def test_a_model_that_does_not_generate_is_an_error(tmp_path: Path, capsys) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    nextembed.NepaModel(**sizes).build().save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("objective: {kind: mae}")
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "-o", str(tmp_path / "a.png")]) == 1
    err = capsys.readouterr().err
    assert "objective mae does not generate images" in err and err.count("\n") == 1


def test_the_python_of_the_docs(run: Run, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/sample.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"nextembed": nextembed}
    for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        text = text.replace("runs/var_demo", str(run.dir)).replace("runs/classifier", str(classifier))
        exec(compile(text, "docs", "exec"), names)
    assert names["images"].shape == (16, 3, 12, 12) and names["distance"] > 0
    assert Path("sheet.png").is_file()


def test_averaged_weights_are_used_with_averaged_heads(tmp_path: Path) -> None:
    """Model and objective are either both averaged or both raw."""
    changes = {"output_dir": str(tmp_path), "probe": {"enabled": False}}
    folder = nextembed.fit("mar_demo_tiny", **changes).dir
    for path, weights, expected in (
        (folder, None, ("ema", True)),
        (folder, "raw", ("raw", False)),
        (folder / "model", None, ("raw", False)),
        (folder / "ema", None, ("ema", True)),
    ):
        sampler = Sampler(path, weights, "cpu")
        assert (sampler.weights, sampler.objective.draws_averaged) == expected
    raw, ema = Sampler(folder, "raw", "cpu"), Sampler(folder, device="cpu")
    objective: Any = ema.objective
    averaged = load_file(folder / "ema/model.safetensors")["vit_nepa.embeddings.cls_token"]
    assert torch.equal(ema.model.state_dict()["vit_nepa.embeddings.cls_token"], averaged)
    draw = lambda one: one(one.labels(2), SampleSettings(num_steps=2, num_denoising_steps=2))  # noqa: E731
    told = draw(ema)
    objective.painter.load_state_dict(objective.averaged.network.state_dict())
    objective.draws_averaged = False
    assert torch.equal(draw(ema), told) and not torch.equal(draw(raw), told)


def test_a_run_keeps_its_tokenizer(run: Run, tmp_path: Path) -> None:
    """The tokenizer is saved in the run, so the folder can be moved."""
    moved = tmp_path / "moved"
    run.dir.rename(moved)
    try:
        sampler = Sampler(moved / "model", device="cpu")
        assert sampler.objective.tokenizer.shape.scales == [1, 3]  # type: ignore[union-attr]
        assert sampler.class_names()[0] == "activities"
    finally:
        moved.rename(run.dir)


@pytest.fixture(scope="module")
def classifier(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier with the classes of the run's data."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    names = Sampler(run.dir, device="cpu").class_names()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
    torch.manual_seed(0)
    config = nextembed.ViTNepaConfig(**sizes, id2label=dict(enumerate(names)))
    nextembed.ViTNepaForImageClassification(config).save_pretrained(folder)
    return folder


def test_samples_are_scored_against_real_images(run: Run, classifier: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "samples.json"
    words = ["evaluate", str(run.dir), "--task", "samples", f"features={classifier}", "num_images=40", "draws=5"]
    assert main([*words, "sampling.guidance=2", "-o", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Fréchet distance" in out and "40 samples, 40 held-out, 40 training" in out and f"{file.name}" in out
    found = SampleScores.load(file)
    assert [row.name for row in found.rows] == ["samples", "held-out", "training", "mean image"]
    assert (found.split, found.width, found.num_training, found.weights) == ("test", 16, 1641, "raw")
    training, mean = found["training"], found["mean image"]
    assert (training.nearest.value, training.copies.value) == (0.0, 1.0)  # their own nearest neighbours
    assert training.frechet is not None and mean.frechet is not None and training.frechet.value < mean.frechet.value
    assert found["held-out"].sharpness.value == 1.0 > mean.sharpness.value > 0
    assert 0.01 <= found["held-out"].copies.value < 0.1  # at least the nearest one
    assert Image.open(file.with_suffix(".png")).size == (12 * 98 + 2, 4 * 98 + 2 + 2 * 98 + 2 + 2 * 22)
    again = nextembed.measure_samples(run.dir, SampleEval(features=str(classifier), num_images=40, draws=5,
                                                          sampling=SampleSettings(guidance=2.0)))  # fmt: skip
    assert again.scores.rows == found.rows  # determined by the seed


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--task samples needs a model for its features"),
        (["features=no/such/run"], "no such run or checkpoint: no/such/run"),
        (["features=MODEL", "num_image=3"], "num_image"),
        (["features=MODEL", "--data", "emoji"], "--task samples takes settings only"),
    ],
)
def test_evaluation_errors_are_one_line(run: Run, classifier: Path, capsys, more: list[str], words: str) -> None:
    more = [word.replace("MODEL", str(classifier)) for word in more]
    assert main(["evaluate", str(run.dir), "--task", "samples", *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_the_report_shows_samples_and_reconstructions(run: Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html").read_text()
    assert "<h2>Samples</h2>" in page and "Next-scale pretraining (VAR) on emoji" in page and "food &amp; drink" in page
    assert "Nearest patches to the predictions" not in page and (run.dir / "samples" / "step-000002.png").is_file()
    tokenizer = nextembed.fit("msvq_demo_tiny", output_dir=str(tmp_path))
    page = (tokenizer.dir / "report.html").read_text()
    assert "Reconstructed images" in page and "Image tokenizer on emoji" in page and "3 x 3" in page
    assert "Attention maps" not in page  # its model is not trained
