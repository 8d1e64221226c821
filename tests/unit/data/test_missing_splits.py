"""A missing split raises MissingSplit; a damaged file or a mistyped name does not."""

import json
from pathlib import Path

import pytest

from nextembed.data.documents import DocumentPart
from nextembed.data.pairs import TextData
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError, MissingSplit


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "splits"  # the word in the path must not matter
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(4)))
    return folder


def test_only_a_default_split_name_may_be_missing(table):
    with pytest.raises(MissingSplit):
        TextData(source=str(table)).rows("test")
    with pytest.raises(ConfigError, match=r"^data.test: split 'tset' is not known.*Allowed: train") as caught:
        TextData(source=str(table), test="tset").rows("test")
    assert not isinstance(caught.value, MissingSplit)


def test_a_damaged_test_file_is_not_a_missing_split(tmp_path, make_images):
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    (folder / "test.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises((ConfigError, DataError), match=r"test\.parquet") as caught:
        ImageData(source=str(folder)).rows("test")
    assert not isinstance(caught.value, MissingSplit)


def test_missing_splits_of_an_image_folder(tmp_path, make_images):
    make_images(tmp_path / "train" / "a", 3)
    with pytest.raises(MissingSplit):
        ImageData(source=str(tmp_path)).rows("validation")
    with pytest.raises(ConfigError, match=r"^data.validation: ") as caught:
        ImageData(source=str(tmp_path), validation="valid").rows("validation")
    assert not isinstance(caught.value, MissingSplit)


def test_missing_split_is_a_config_error():
    assert issubclass(MissingSplit, ConfigError) and issubclass(TextData, DocumentPart)
