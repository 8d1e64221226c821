from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_images():
    """Writes `count` small PNG files 000.png ... into a folder."""

    def make(folder: Path, count: int, size: int = 8) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        return folder

    return make
