import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import nextembed
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features.embed import embed
from nextembed.evaluation.features.parts import METADATA
from nextembed.evaluation.features.search import Hit, score, search
from nextembed.evaluation.features.sheet import contact_sheet, images_of, save_sheet
from nextembed.evaluation.features.stored import FeatureFile

PLACE = {"layer": 2, "pooling": "mean", "attention": "full", "weights": "raw"}


def write(file, values, labels=None, group=7, settings=None):
    """A features file of the given vectors [N, D], in row groups of 7."""
    kind = pa.list_(pa.float32(), values.shape[1])
    columns = {
        "row": list(range(len(values))),
        "key": [f"key {i}" for i in range(len(values))],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().reshape(-1)), type=kind),
    }
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if settings:
        table = table.replace_schema_metadata({METADATA: json.dumps(settings)})
    pq.write_table(table, file, row_group_size=group)
    return file


@pytest.fixture
def vectors():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def test_search_equals_brute_force(tmp_path, vectors):
    file = write(tmp_path / "f.parquet", vectors)
    query = torch.randn(6, generator=torch.Generator().manual_seed(1))
    cosine = F.cosine_similarity(vectors, query[None])
    hits = search(file, query, top=9)
    assert [hit.row for hit in hits] == cosine.argsort(descending=True)[:9].tolist()
    np.testing.assert_allclose([hit.cosine for hit in hits], cosine.sort(descending=True).values[:9], atol=1e-5)
    assert [hit.rank for hit in hits] == list(range(1, 10)) and hits[0].key == f"key {hits[0].row}"
    assert len(search(file, query, top=99)) == 40


def test_a_row_is_not_its_own_neighbour_and_ties_keep_their_order(tmp_path, vectors):
    vectors[[5, 20, 30]] = vectors[3].clone()
    file = write(tmp_path / "f.parquet", vectors)
    assert [hit.row for hit in search(file, "key 20", top=3)] == [3, 5, 30]
    assert all(hit.cosine == 1.0 for hit in search(file, "key 20", top=3))
    assert len(search(file, "key 20", top=99)) == 39


def test_a_query_image_is_embedded_like_the_file(saved, tmp_path, pictures):
    folder = pictures(tmp_path / "images", 9)
    file = embed(saved / "run", str(folder), tmp_path / "f.parquet", **PLACE).file
    for query in (str(folder / "004.png"), Image.open(folder / "004.png"), folder / "004.png"):
        hits = nextembed.search(file, query, top=2)
        assert hits[0].key == "004.png" and hits[0].cosine > 0.9999 > hits[1].cosine
        assert hits[0].path == str(folder / "004.png")
    assert [h.key for h in search(file, str(folder / "004.png"), 3)][1:] == [h.key for h in search(file, "004.png", 2)]


def test_a_moved_or_changed_model(saved, tmp_path, pictures):
    folder, checkpoint = pictures(tmp_path / "images", 3), tmp_path / "model"
    shutil.copytree(saved / "plain", checkpoint)
    file = embed(checkpoint, str(folder), tmp_path / "f.parquet").file
    shutil.move(checkpoint, tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"no such run or checkpoint: .*model.* \(give its path with --checkpoint\)"):
        search(file, folder / "000.png")
    assert search(file, folder / "000.png", checkpoint=tmp_path / "moved")[0].key == "000.png"
    with pytest.raises(ConfigError, match="differ from those that"):
        search(file, folder / "000.png", checkpoint=saved / "run" / "ema")


def test_invalid_queries_and_files_are_one_line_errors(saved, tmp_path, vectors):
    file = write(tmp_path / "f.parquet", vectors)
    pq.write_table(pa.table({"key": ["a"], "value": [1.0]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"embedding": [[1.0]]}), tmp_path / "ragged.parquet")
    (tmp_path / "text.parquet").write_text("text")
    picture = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(picture)
    for features, query, words in (
        (file, "key 41", r"'key 41' is neither an image file nor a key in .*Did you mean 'key 4"),
        (file, picture, "does not record its model"),
        (file, torch.zeros(5), r"shape \(5,\), features of .* are 6 wide"),
        (tmp_path / "none.parquet", "a", "no such features file"),
        (tmp_path / "other.parquet", "a", "has no column 'embedding'; its columns: key, value"),
        (tmp_path / "ragged.parquet", "a", "should be a fixed-size list of floats"),
        (tmp_path / "text.parquet", "a", "is not a Parquet file"),
    ):
        with pytest.raises(ConfigError, match=words) as err:
            search(features, query)
        assert "\n" not in str(err.value)
    with pytest.raises(ConfigError, match=r"gives features of width 16, those of .* have width 6"):
        search(file, picture, checkpoint=saved / "plain")
    with pytest.raises(DataError, match="cannot be read"):
        search(write(tmp_path / "g.parquet", torch.zeros(2, 16)), tmp_path / "text.parquet", checkpoint=saved / "plain")


def test_score_equals_scikit_learn(tmp_path, vectors, monkeypatch):
    from sklearn.metrics import average_precision_score

    labels = [i % 3 for i in range(36)] + [7, None, None, 8]
    found = score(write(tmp_path / "f.parquet", vectors, labels), k=4)
    known = [*range(37), 39]
    unit = F.normalize(vectors, dim=1)
    cosine = unit @ unit.T
    first, at_k, average = [], [], []
    for query in range(36):
        others = [i for i in known if i != query]
        alike = np.array([labels[i] == labels[query] for i in others])
        values = cosine[query, others].numpy()
        ranking = (-values).argsort()
        first.append(alike[ranking[0]])
        at_k.append(alike[ranking[:4]].mean())
        average.append(average_precision_score(alike, values))
    assert found.recall_at_1 == pytest.approx(np.mean(first))
    assert found.precision_at_k == pytest.approx(np.mean(at_k))
    assert found.mean_average_precision == pytest.approx(np.mean(average))
    assert found.chance == pytest.approx(11 / 37)
    assert (found.num_queries, found.num_images, found.num_left_out) == (36, 38, 4)
    monkeypatch.setattr("nextembed.evaluation.features.search.SCORE_BYTES", 1)  # one query at a time
    assert score(tmp_path / "f.parquet", k=4) == pytest.approx(found)
    with pytest.raises(DataError, match="no labels"):
        score(write(tmp_path / "g.parquet", vectors))
    with pytest.raises(DataError, match="no two rows share a label"):
        score(write(tmp_path / "h.parquet", vectors, list(range(40))))


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_the_hits(saved, tmp_path, streaming):
    data = ImageData(source="emoji", split="test", streaming=streaming)
    file = FeatureFile(embed(saved / "run", data, tmp_path / "f.parquet", **PLACE).file)
    hits = search(file, file.rows([3])[0]["key"], top=3)
    found = images_of(file, hits)
    assert [picture.size for picture in found] == [(32, 32)] * 3
    assert images_of(file, [hits[0]._replace(key="gone")]) == [None]
    rows = ImageData(source="emoji", split="test").rows("test")
    reread = np.asarray(nextembed.ImageData(source="emoji").reader(3).read(rows[hits[0].row]["image"]).permute(1, 2, 0))
    assert np.array_equal(np.asarray(found[0]), reread)


def test_contact_sheet_shows_the_query_first_and_every_hit(tmp_path):
    colours = ["red", "lime", "blue", "cyan"]
    red, *others = (Image.new("RGB", (40, 30), colour) for colour in colours)
    long = "a/very/long/name/of/a/file " * 9
    hits = [Hit(i + 1, 0.9, i, long, None, i, "猫 кот\n cat") for i in range(4)]
    sheet = contact_sheet(red, "query.png", hits, [*others, None], "4 images")
    pixels = np.asarray(sheet)
    seen = {}
    for colour in colours:
        where = (pixels == np.array(Image.new("RGB", (1, 1), colour))[0, 0]).all(-1).nonzero()
        assert len(where[0]) > 10_000
        seen[colour] = (where[0].min(), where[1].min())
    assert sorted(seen, key=seen.get) == colours  # row by row, from left to right
    file = save_sheet(sheet, tmp_path / "new" / "sheet.png")
    assert Image.open(file).size == sheet.size and [p.name for p in file.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(tmp_path, vectors, value):
    vectors = vectors.clone()
    vectors[9, 1] = value
    write(tmp_path / "f.parquet", vectors)
    with pytest.raises(DataError, match="the features of row 9 are not finite"):
        list(FeatureFile(tmp_path / "f.parquet").unit_vectors())
