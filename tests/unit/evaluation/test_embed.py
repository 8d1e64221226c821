import json
import shutil
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features import embed as module
from nextembed.evaluation.features.embed import decoded, embed
from nextembed.evaluation.features.encoder import encode
from nextembed.evaluation.features.parts import METADATA, Parts

PLACE = {"layer": 2, "pooling": "mean", "attention": "full", "weights": "raw"}


def values(file):
    table = pq.read_table(file)
    return torch.tensor(np.stack(table.column("embedding").to_numpy())), table


def settings(file):
    return json.loads(pq.read_schema(file).metadata[METADATA])


def test_a_folder_with_broken_images(saved, tmp_path, pictures):
    folder = tmp_path / "images"
    for name, bad in (("cats", (1,)), ("dogs", (0, 3))):
        pictures(folder / name, 4, bad)
    done = embed(saved / "run", str(folder), tmp_path / "f.parquet", batch_size=3, **PLACE)
    features, table = values(done.file)
    assert done.num_rows == 5 and table.column("row").to_pylist() == [0, 2, 3, 5, 6]
    names = ["cats/000.png", "cats/002.png", "cats/003.png", "dogs/001.png", "dogs/002.png"]
    assert table.column("key").to_pylist() == names
    assert table.column("path").to_pylist() == [str(folder / name) for name in names]
    assert table.column("label").to_pylist() == [0, 0, 0, 1, 1]
    assert table.column("label_name").to_pylist() == ["cats"] * 3 + ["dogs"] * 2
    torch.testing.assert_close(features, encode(saved / "run", [folder / n for n in names], **PLACE))
    lines = [json.loads(line) for line in done.skipped_file.read_text().splitlines()]
    assert lines == done.skipped and [(line["row"], line["key"]) for line in lines] == [
        (1, "cats/001.png"), (4, "dogs/000.png"), (7, "dogs/003.png"),
    ]  # fmt: skip
    assert all(line["reason"] == "not an image file of a known format" for line in lines)


def test_the_file_records_how_it_was_made(saved, tmp_path):
    done = embed(saved / "run", "emoji", tmp_path / "f.parquet", limit=70, dtype="float16", **PLACE)
    found = settings(done.file)
    wanted = {"layer": 2, "pooling": "mean", "attention": "full", "weights": "raw", "image_size": 16, "width": 16,
              "source": "emoji", "split": "train", "num_rows": 70, "limit": 70,
              "checkpoint": str(saved / "run")}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert {"nextembed_version", "weights_digest"} <= found.keys()
    kind = pq.read_schema(done.file).field("embedding").type
    assert kind.list_size == 16 and str(kind.value_type) == "halffloat"
    assert not {"path"} & set(pq.read_schema(done.file).names)  # the images have no files


def test_streamed_is_the_same(saved, tmp_path):
    tables = []
    for streaming in (False, True):
        data = ImageData(source="emoji", split="validation", streaming=streaming)
        done = embed(saved / "run", data, tmp_path / f"{streaming}.parquet", num_workers=0, **PLACE)
        tables.append(pq.read_table(done.file, columns=["row", "key", "label_name", "embedding"]))
    assert tables[0].equals(tables[1]) and tables[0].num_rows == 94


def test_text_labels_and_row_groups(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("nextembed.evaluation.features.parts.GROUP_BYTES", 64)
    data = ImageData(source="emoji", label_column="subgroup")
    done = embed(saved / "run", data, tmp_path / "f.parquet", limit=150, part_seconds=0, batch_size=40, **PLACE)
    found = pq.ParquetFile(done.file)
    groups = [found.metadata.row_group(g).num_rows for g in range(found.num_row_groups)]
    assert groups == [64, 64, 22]
    assert found.read(["label_name"]).column(0)[0].as_py() == "face-smiling"


def stop_after(num_batches):
    """A progress callback that raises, which simulates a kill: data in memory is lost."""
    seen = []

    def report(done, total):
        seen.append(done)
        if len(seen) == num_batches:
            raise RuntimeError("killed")

    return report


def test_an_interrupted_run_resumes_and_never_mixes_settings(saved, tmp_path):
    options = dict(batch_size=10, part_seconds=0, limit=60, **PLACE)
    whole = embed(saved / "run", "emoji", tmp_path / "whole.parquet", **options)
    output = tmp_path / "f.parquet"
    with pytest.raises(RuntimeError, match="killed"):
        embed(saved / "run", "emoji", output, report=stop_after(3), **options)
    with pytest.raises(ConfigError, match=r"of other settings \(layer 2, now 1\)"):
        embed(saved / "run", "emoji", output, **{**options, "layer": 1})
    with pytest.raises(ConfigError, match=r"\(weights 'raw', now 'ema'\)"):
        embed(saved / "run", "emoji", output, **{**options, "weights": "ema"})
    with pytest.raises(ConfigError, match=r"\(split 'train', now 'test'\)"):
        embed(saved / "run", ImageData(source="emoji", split="test"), output, **options)
    done = embed(saved / "run", "emoji", output, **options)
    assert done.num_resumed == 30 and output.read_bytes() == whole.file.read_bytes()
    with pytest.raises(RuntimeError, match="killed"):
        embed(saved / "run", "emoji", output, report=stop_after(3), overwrite=True, **options)
    other = embed(saved / "run", "emoji", output, overwrite=True, **{**options, "layer": 1})
    assert other.num_resumed == 0 and settings(output)["layer"] == 1  # a clean start
    assert not list(tmp_path.glob("*.parts"))


def test_killed_between_the_file_and_the_removal_of_its_parts(saved, tmp_path, monkeypatch):
    output, options = tmp_path / "f.parquet", dict(limit=20, **PLACE)

    def killed(parts, pattern="*"):
        if pattern == "*":
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_remove", killed)
        with pytest.raises(RuntimeError, match="killed"):
            embed(saved / "run", "emoji", output, **options)
    before = output.read_bytes()
    assert embed(saved / "run", "emoji", output, **options).num_rows == 20
    assert output.read_bytes() == before and not list(tmp_path.glob("*.parts"))


def test_a_damaged_part_is_recomputed(saved, tmp_path):
    output, options = tmp_path / "f.parquet", dict(batch_size=10, part_seconds=0, limit=40, **PLACE)
    whole = embed(saved / "run", "emoji", tmp_path / "whole.parquet", **options)
    with pytest.raises(RuntimeError, match="killed"):
        embed(saved / "run", "emoji", output, report=stop_after(3), **options)
    (tmp_path / "f.parquet.parts" / "part-000001.parquet").write_bytes(b"PAR1 cut")
    done = embed(saved / "run", "emoji", output, **options)
    assert done.num_resumed == 10 and output.read_bytes() == whole.file.read_bytes()


def test_changed_weights_and_changed_data_are_detected(saved, tmp_path, pictures):
    checkpoint, folder = tmp_path / "model", pictures(tmp_path / "images", 12)
    shutil.copytree(saved / "plain", checkpoint)
    options = dict(batch_size=4, part_seconds=0, layer=1)
    with pytest.raises(RuntimeError, match="killed"):
        embed(checkpoint, str(folder), tmp_path / "f.parquet", report=stop_after(2), **options)
    shutil.copy(folder / "011.png", folder / "0005.png")
    (folder / "011.png").unlink()
    with pytest.raises(ConfigError, match=r"the source has changed .*row 7 was '007.png'"):
        embed(checkpoint, str(folder), tmp_path / "f.parquet", **options)
    shutil.copy(saved / "run" / "ema" / "model.safetensors", checkpoint / "model.safetensors")
    with pytest.raises(ConfigError, match="weights_digest"):
        embed(checkpoint, str(folder), tmp_path / "f.parquet", **options)


def test_a_second_process_is_rejected(saved, tmp_path):
    output, found = tmp_path / "f.parquet", []

    def second(*_):
        with pytest.raises(ConfigError, match="another process is writing"):
            embed(saved / "run", "emoji", output, limit=5, **PLACE)
        found.append(True)

    embed(saved / "run", "emoji", output, limit=5, report=second, **PLACE)
    assert found


def test_invalid_input_is_one_line(saved, tmp_path, pictures):
    output = tmp_path / "f.parquet"
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for source, words in (
        (tmp_path / "empty", "is empty"),
        (tmp_path / "texts", "texts"),
        (tmp_path / "none", "no such file or folder"),
    ):
        with pytest.raises(ConfigError, match=words) as err:
            embed(saved / "plain", str(source), output)
        assert "\n" not in str(err.value)
    with pytest.raises(DataError, match=r"none of the 3 images is readable: 000.png: not an image"):
        embed(saved / "plain", str(pictures(tmp_path / "broken", 3, (0, 1, 2))), output)
    with pytest.raises(ConfigError, match="is a folder"):
        embed(saved / "plain", "emoji", tmp_path)
    assert not output.exists() and not list(tmp_path.glob("*.parts"))
    output.write_text("mine")
    with pytest.raises(ConfigError, match="exists; --overwrite replaces it"):
        embed(saved / "plain", "emoji", output)
    assert output.read_text() == "mine"


def test_memory_is_bounded_and_order_kept():
    alive, most, lock = set(), [0], threading.Lock()

    def rows():
        for i in range(200):
            with lock:
                alive.add(i)
                most[0] = max(most[0], len(alive))
            yield i, None

    seen = []
    for batch in decoded(rows(), 8, lambda place, row: place, 3):
        seen += batch
        alive.difference_update(batch)
    assert seen == list(range(200)) and most[0] <= 8 * (module.AHEAD + 2)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["attention.attention.key.weight", "output.dense.bias"])
def test_non_finite_weights_are_rejected(saved, tmp_path, pictures, name, value):
    model = shutil.copytree(saved / "run" / "model", tmp_path / "model")
    state = load_file(model / "model.safetensors")
    key = next(key for key in state if key.endswith(f"layer.0.{name}"))
    state[key][0] = value
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=f"the weights .*{name} are not finite numbers"):
        embed(model, str(pictures(tmp_path / "images", 2)), tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()
