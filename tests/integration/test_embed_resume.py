"""Embedding that is killed at any moment and restarted gives the identical file."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked import run_script

from nextembed import ViTNepaConfig, ViTNepaForPreTraining

RUNNER = Path(__file__).parent / "embed_runner.py"
NUM_IMAGES, BAD = 60, (0, 9, 10, 11, 12, 30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    folder = tmp_path_factory.mktemp("model")
    ViTNepaForPreTraining(ViTNepaConfig(image_size=16, patch_size=8, layerscale_value=0.5, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module", params=["folder", "parquet"])
def source(request, tmp_path_factory) -> Path:
    """Real images, some broken: a folder, or three Parquet files."""
    folder = tmp_path_factory.mktemp(request.param)
    sample = pq.read_table(Path(sys.modules["nextembed"].__file__ or "").parent / "data/sample/emoji32.parquet")
    images = [row["image"]["bytes"] for row in sample.slice(0, NUM_IMAGES).to_pylist()]
    images = [b"text" if i in BAD else image for i, image in enumerate(images)]
    if request.param == "folder":
        for i, image in enumerate(images):
            (folder / f"{i:03d}.png").write_bytes(image)
    else:
        for part in range(3):
            rows = images[20 * part : 20 * part + 20]
            pq.write_table(pa.table({"image": [{"bytes": b, "path": None} for b in rows]}), folder / f"{part}.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "streaming"])
def test_killed_twice_and_restarted_gives_the_same_file(checkpoint, source, tmp_path, streaming) -> None:
    if streaming != (source.name.startswith("parquet")):
        pytest.skip("each source is tested in one mode only")
    whole, output = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    done = run_script(RUNNER, checkpoint, source, streaming, whole, output, 1, 6)
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_bytes() == whole.read_bytes()
    skipped = [output.with_suffix(".skipped.jsonl").read_text(), whole.with_suffix(".skipped.jsonl").read_text()]
    assert skipped[0] == skipped[1]
    assert [json.loads(line)["row"] for line in skipped[0].splitlines()] == list(BAD)
    assert pq.read_table(output).column("row").to_pylist() == [i for i in range(58) if i not in BAD]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "parts.parquet", "parts.skipped.jsonl", "whole.parquet", "whole.skipped.jsonl",
    ]  # fmt: skip
