import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_search import PLACE, write

from nextembed.cli import main
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError, MissingExtra
from nextembed.evaluation.features.embed import embed
from nextembed.evaluation.features.index import FeatureIndex, build_index, open_features
from nextembed.evaluation.features.search import search, search_folder


@pytest.fixture(autouse=True)
def faiss():
    return pytest.importorskip("faiss")


@pytest.fixture
def clustered():
    """600 vectors around 12 centres with a common offset, like frozen features."""
    make = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 8, generator=make)
    return centres[torch.randint(12, (600,), generator=make)] + 0.3 * torch.randn(600, 8, generator=make) + 2


def test_a_small_index_is_exact(tmp_path, clustered):
    file = write(tmp_path / "f.parquet", clustered, labels=[i % 3 for i in range(600)])
    made = build_index(file, tmp_path / "index")
    assert (made.facts.kind, made.facts.num_rows, made.facts.width, made.facts.recall) == ("exact", 600, 8, 1.0)
    file.rename(tmp_path / "gone.parquet")  # the index does not need it
    for query in (torch.randn(8, generator=torch.Generator().manual_seed(1)), "key 20"):
        ours, exact = search(made.path, query, top=9), search(tmp_path / "gone.parquet", query, top=9)
        assert [hit.row for hit in ours] == [hit.row for hit in exact]
        assert [hit.label for hit in ours] == [hit.label for hit in exact]
        np.testing.assert_allclose([hit.cosine for hit in ours], [hit.cosine for hit in exact], atol=2e-6)
    assert len(search(made.path, "key 3", top=10**4)) == 599


def test_a_large_index_measures_its_recall(tmp_path, clustered):
    file = write(tmp_path / "f.parquet", clustered)
    made = build_index(file, tmp_path / "index", recall=0.9, exact_rows=100)
    facts = made.facts
    assert (facts.kind, facts.num_clusters, facts.num_queries) == ("clusters", 49, 200)
    bank = open_features(made.path)
    unit = F.normalize(clustered, dim=1)
    numbers = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:400].sort().values[200:]
    shares = []
    for number in numbers.tolist():
        cosine = unit @ unit[number]
        cosine[number] = -2
        found = bank.nearest(clustered[number], 10, number)[1]
        assert number not in found
        shares.append(len(set(found.tolist()) & set(cosine.topk(10).indices.tolist())) / 10)
    assert np.mean(shares) == pytest.approx(facts.recall, abs=0.005) and facts.recall > 0.8
    one = build_index(file, tmp_path / "one", recall=0.01, exact_rows=100).facts
    assert one.num_probes == 1 and one.recall < facts.recall and facts.num_probes > 1
    all_of_it = build_index(file, tmp_path / "all", recall=1.0, exact_rows=100).facts
    assert all_of_it.recall > 0.99


def test_vectors_are_retrieved_by_row(tmp_path, clustered):
    file = write(tmp_path / "f.parquet", clustered)
    for name, rows in (("exact", 10**5), ("clusters", 100)):
        bank = open_features(build_index(file, tmp_path / name, exact_rows=rows).path)
        assert F.cosine_similarity(bank.vector(77), clustered[77], dim=0) > 0.9999


def test_invalid_input_is_one_line(tmp_path, clustered):
    file = write(tmp_path / "f.parquet", clustered)
    for recall in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="recall should be"):
            build_index(file, tmp_path / "i", recall=recall)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists; name a new folder"):
        build_index(file, tmp_path / "taken")
    with pytest.raises(ConfigError, match=r"is not an index of features: index\.faiss is missing"):
        search(tmp_path / "taken", "key 1")
    with pytest.raises(ConfigError, match="no rows to index"):
        build_index(write(tmp_path / "empty.parquet", clustered[:0]), tmp_path / "i")
    clustered[9, 2] = float("nan")
    with pytest.raises(DataError, match="features of row 9 are not finite"):
        build_index(write(tmp_path / "nan.parquet", clustered), tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_mismatched_and_damaged_files(tmp_path, clustered):
    a = build_index(write(tmp_path / "a.parquet", clustered), tmp_path / "a").path
    b = build_index(write(tmp_path / "b.parquet", clustered[:50]), tmp_path / "b").path
    (b / "index.faiss").rename(a / "index.faiss")
    with pytest.raises(ConfigError, match="do not match each other"):
        FeatureIndex(a)
    (a / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ConfigError, match=r"index\.faiss cannot be read"):
        FeatureIndex(a)
    (a / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json: kind is missing"):
        FeatureIndex(a)


def test_without_the_extra(tmp_path, clustered, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"pip install 'nextembed\[search\]'"):
        build_index(write(tmp_path / "f.parquet", clustered), tmp_path / "i")


def test_the_command_line_and_folders_of_queries(saved, tmp_path, capsys):
    random = np.random.default_rng(0)
    for kind, count in (("cat", 5), ("dog", 4)):
        (tmp_path / "d" / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "d" / kind / f"{number}.png")
    file = embed(saved / "run", ImageData(source=str(tmp_path / "d")), tmp_path / "f.parquet", **PLACE).file
    index = str(tmp_path / "index")
    assert main(["index", str(file), "-o", index]) == 0
    assert "9 rows x" in capsys.readouterr().out
    queries = tmp_path / "new" / "test"
    queries.mkdir(parents=True)
    for path in sorted((tmp_path / "d" / "cat").iterdir())[:2]:
        (queries / path.name).write_bytes(path.read_bytes())
    (queries / "broken.png").write_bytes(b"\x89PNG no")
    found = search_folder(open_features(index), tmp_path / "new", top=2)
    assert [len(hits) for hits in found.hits.values()] == [2, 2] and list(found.skipped) == ["test/broken.png"]
    for key, hits in found.hits.items():
        assert hits[0].key == f"cat/{key.removeprefix('test/')}" and hits[0].cosine == pytest.approx(1, abs=1e-4)
    table = tmp_path / "near.csv"
    assert main(["search", index, str(tmp_path / "new"), "--top", "2", "-o", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 5 and table.read_text().startswith("query,rank,cosine,row,key")
    assert "1 unreadable" in capsys.readouterr().out
    assert main(["search", index, str(tmp_path / "new"), "-o", "x.png"]) == 2
    assert main(["search", str(file), "cat/nope.png"]) == 2
