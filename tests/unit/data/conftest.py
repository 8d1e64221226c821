"""Image files of many kinds; every fixture builds its own."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch):
    """The cache of `datasets` is in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def picture(height: int = 40, width: int = 60, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random image with texture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-8, 9, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(img: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    img.save(file, format, **options)
    return file.getvalue()


def make_folder(folder: Path, count: int, bad: tuple[int, ...] = (), size: int = 40) -> Path:
    """`count` PNG files 000.png ...; the `bad` ones contain text."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        data = b"this is no image" if i in bad else encoded(picture(size, size, seed=i))
        (folder / f"{i:03d}.png").write_bytes(data)
    return folder


@pytest.fixture
def make_images():
    return make_folder


@pytest.fixture
def make_picture():
    return picture


@pytest.fixture
def encode():
    return encoded


def parquet(path, count=10, encode=None, make_picture=None, **columns):
    """A Parquet file with 8 x 8 images and the given columns."""
    images = [{"bytes": encode(make_picture(8, 8, seed=i)), "path": None} for i in range(count)]
    features = {"image": datasets.Image()}
    for name, values in columns.items():
        kind = "int64" if isinstance(values[0], int) else "string"
        features[name] = datasets.Value(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": images, **columns}, datasets.Features(features)).to_parquet(str(path))
    return path


@pytest.fixture
def make_parquet(encode, make_picture):
    return lambda path, count=10, **columns: parquet(path, count, encode, make_picture, **columns)
