"""HEIC photographs, with the extra "heic"."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from nextembed.data.sources import ImageData
from nextembed.data.transforms import ImageReader, Unreadable


def heic(value: int) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(np.full((32, 48, 3), value, np.uint8))).save(file, quality=90)
    return file.getvalue()


def test_heic_images_are_used_like_others(tmp_path: Path) -> None:
    for kind, value in (("cat", 200), ("dog", 40)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.HEIC").write_bytes(heic(value))
    data = ImageData(source=str(tmp_path))
    samples = data.eval_samples("train", image_size=16, num_channels=3)
    assert [samples[i]["label"] for i in range(2)] == [0, 1] and not samples.log.reasons
    for i, value in ((0, 200), (1, 40)):
        assert samples[i]["pixel_values"].mean().item() == pytest.approx(value / 127.5 - 1, abs=0.03)


def test_damaged_and_large_images_are_unreadable() -> None:
    for data, words in ((heic(9)[:60], ""), (heic(9), "max_pixels")):
        with pytest.raises(Unreadable, match=words):
            ImageReader(3, max_pixels=1000).read(data)
