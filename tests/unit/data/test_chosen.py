"""Rows selected by the value of a column: compared as text in text columns, and as numbers in numeric columns."""

import datetime
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nextembed import ImageData, RunConfig, recipes
from nextembed.core.config import DATA, apply_overrides, from_yaml, to_yaml
from nextembed.errors import ConfigError
from nextembed.evaluation.language.tables import read_table

TEXTS = ["001", "1", "1.0", "1e3", "1000.0", "no", "true", "True", "null", "2024-01-02", "1:30", "+5", "5", "None", ""]


@pytest.fixture
def png():
    made = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(made, "png")
    return made.getvalue()


@pytest.fixture
def table(tmp_path, png):
    day = datetime.date(2024, 1, 2)
    columns = {
        "image": [{"bytes": png, "path": None}] * len(TEXTS),
        "text": TEXTS,
        "number": list(range(len(TEXTS))),
        "half": pa.array([i / 10 for i in range(len(TEXTS))], pa.float32()),
        "price": pa.array([Decimal(i) / 10 for i in range(len(TEXTS))], pa.decimal128(5, 1)),
        "flag": [i % 2 == 0 for i in range(len(TEXTS))],
        "day": [day + datetime.timedelta(i) for i in range(len(TEXTS))],
        "at": [datetime.datetime(2024, 1, 2, 3) + datetime.timedelta(i) for i in range(len(TEXTS))],
        "holes": [None if i == 3 else i for i in range(len(TEXTS))],
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def kept(table, setting, **more):
    """The numbers of the selected rows; the override also survives the YAML that a run saves."""
    config = apply_overrides(recipes.nepa_demo(), [f"data.source={table}", f"data.where={setting}"])
    assert from_yaml(RunConfig, to_yaml(config)) == config
    data = config.data.model_copy(update={"label_column": "number", **more})
    return [row["label"] for row in data.rows("train")]


@pytest.mark.parametrize("text", [text for text in TEXTS if text not in ("true", "True", "null", "")])
def test_text_is_compared_literally(table, text):
    assert kept(table, f"{{text: {text}}}") == [TEXTS.index(text)]
    assert kept(table, f"{{text: [{text}, other]}}") == [TEXTS.index(text)]


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ("{text: ['true', 'null', '']}", [6, 8, 14]),  # quoted: exactly this text
        ("{text: true}", [6, 7]),  # also True, as Python writes it
        ("{number: [7, '8', 009, 1e1]}", [7, 8, 9, 10]),
        ("{number: abc}", None),
        ("{half: [0.1, '.2', 3e-1]}", [1, 2, 3]),
        ("{price: [0.1, 1]}", [1, 10]),
        ("{flag: false, number: [1, 2, 3]}", [1, 3]),
        ("{flag: 'True', number: [1, 2, 3]}", [2]),
        ("{day: [2024-01-02, 2024-01-05]}", [0, 3]),
        ("{at: 2024-01-03T03:00:00}", [1]),
        ("{at: 2024-01-03 03:00}", [1]),
        ("{holes: null}", [3]),
        ("{holes: [null, 4]}", [3, 4]),
    ],
)
def test_values_are_compared_in_the_type_of_the_column(table, setting, rows):
    if rows is None:
        with pytest.raises(ConfigError, match="no row has number = abc; it is one of: 0, 1, 10"):
            kept(table, setting)
    else:
        assert kept(table, setting) == rows


def test_streaming_selects_the_same_rows(table):
    data = ImageData(source=str(table), where={"text": ["001", 1.0, "1e3"]}, label_column="number", streaming=True)
    assert sorted(row["label"] for row in data.rows("train").read(0, 0, 0, 1)) == [0, 2, 3]


def test_a_class_is_selected_by_name(tmp_path, png):
    for name in ("10", "2", "cat"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(png)
    keys = [row["key"] for row in ImageData(source=str(tmp_path), where={"label": [2, "cat"]}).rows("train")]
    assert keys == ["2/0.png", "2/1.png", "cat/0.png", "cat/1.png"]
    with pytest.raises(ConfigError, match="no row has label = dog; it is one of: 10, 2, cat"):
        ImageData(source=str(tmp_path), where={"label": "dog"}).rows("train")


def test_a_split_column_of_numbers(table):
    data = ImageData(source=str(table), split="3", split_column="number", label_column="number")
    assert [row["label"] for row in data.rows("train")] == [3]


def test_texts_of_joined_tables_and_of_examples(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("id,answer,question\n1,1e3,a\n2,1000.0,b\n3,001,c\n")
    pieces = {"question": "text"}
    part = DATA.parse({"kind": "records", "source": str(file), "pieces": pieces, "where": {"answer": [1e3]}})
    assert [row["id"] for row in part.rows("train")] == ["2"]
    joined = "data={kind: records, source: x, joins: {a: {source: y, by: id, where: {k: 1e3}}}}"
    config = apply_overrides(recipes.omni_emoji(), [joined])
    assert config.data.joins["a"].where == {"k": "1e3"}
    assert [one.question for one in read_table(file, where={"answer": ["1e3", "001"]})] == ["a", "c"]
