"""`embed` and `search` on the command line: files, output and errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nextembed import ViTNepaConfig, ViTNepaForPreTraining
from nextembed.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, and images/ with one broken file."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = ViTNepaConfig(image_size=16, patch_size=8, layerscale_value=0.5, **sizes)
    ViTNepaForPreTraining(config).save_pretrained(folder / "model")
    for i in range(8):
        kind = folder / "images" / ("warm" if i < 4 else "cold")
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pixels[..., 2 if i < 4 else 0] //= 4
        Image.fromarray(pixels).resize((24, 24)).save(kind / f"{i}.png")
    (folder / "images" / "warm" / "3.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def embedded(folder: Path) -> tuple[Path, str]:
    """The file written by the command, and its output."""
    words = ["embed", str(folder / "model"), str(folder / "images"), "-o", str(folder / "f.parquet"), "--layer", "1"]
    done = subprocess.run([sys.executable, "-m", "nextembed_cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "f.parquet", done.stdout


def test_embed_prints_a_summary(embedded: tuple[Path, str]) -> None:
    file, out = embedded
    assert "Feature: layer 1 of 2, mean, causal attention, 16 wide (as asked for)" in out
    assert f"Images:  {file.parent / 'images'}, split train" in out
    assert f"Saved:   {file} (7 rows x 16, " in out and "images/s)" in out
    skipped = file.with_name("f.skipped.jsonl")
    assert f"Skipped: 1 unreadable, named in {skipped}; the first is warm/3.png: not an image file" in out
    table = pq.read_table(file)
    assert table["label_name"].to_pylist() == ["cold"] * 4 + ["warm"] * 3
    assert json.loads(table.schema.metadata[b"nextembed"])["checkpoint"] == str(file.parent / "model")


def test_search_prints_a_table_and_writes_a_sheet(
    embedded: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)  # the model and the images are found from another folder
    file, _ = embedded
    query = str(folder / "images" / "cold" / "5.png")
    assert main(["search", str(file), query, "--top", "3", "-o", "sheet.png"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.split() == ["1", "1.0000", "cold/5.png", "cold"]
    assert Image.open("sheet.png").width > 500
    assert main(["search", str(file), "cold/5.png", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == second.split()[1:]


def test_score_is_printed_as_text(embedded: tuple[Path, str], capsys: pytest.CaptureFixture) -> None:
    assert main(["search", str(embedded[0]), "--score"]) == 0
    out = capsys.readouterr().out
    assert "(recall@1)" in out and "7 queries, each against all other 6 images." in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("embed {0}/model {0}/images -o {0}/f.parquet", "f.parquet exists; --overwrite replaces it"),
        ("embed {0}/model {0}/images -o {0}/new.parquet --pooling meen", "Did you mean 'mean'?"),
        ("embed {0}/model {0}/images -o {0}/new.parquet --layer 5", "layer 5 is not in 0..2"),
        ("embed {0}/model {0}/images -o {0}/new.parquet --weights ema", "has no ema weights; there is raw"),
        ("embed {0}/model {0}/images -o {0}/new.parquet data.splitt=test", "Did you mean 'split'?"),
        ("embed {0}/model {0}/images -o {0}/new.parquet data.split=test", "split 'test' is not known"),
        ("embed {0}/model {0}/images -o {0}/new.parquet train.max_steps=3", "only data settings apply here"),
        ("embed {0}/model {0}/imags -o {0}/new.parquet", "Did you mean"),
        ("embed {0}/images {0}/images -o {0}/new.parquet", "contains no model"),
        (
            "embed {0}/model {0}/images -o {0}/new.parquet --batch-size 0",
            "embed.batch_size: should be greater",
        ),
        ("search {0}/none.parquet a", "no such file: "),
        ("search {0}/f.parquet cold/55.png", "Did you mean 'cold/5.png'?"),
        ("search {0}/f.parquet", "name an image file or a key"),
        ("search {0}/f.parquet a --score", "leave QUERY out"),
        ("search {0}/f.parquet cold/5.png -o sheet.jpg", "should end in .png"),
    ],
)
def test_errors_are_one_line_with_code_2(
    line: str, words: str, embedded: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(p.name for p in folder.iterdir())
    assert main(line.format(folder).split()) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == before
