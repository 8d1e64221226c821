"""All kinds of images in prompts: the pixels that the model sees, and their position in a batch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from nextembed.data.transforms import ImageReader
from nextembed.models.emu import EmuProcessor
from nextembed.models.emu.processing_emu import to_rgb
from nextembed.models.emu.vocabulary import train_tokenizer

N, SIZE = 4, 8
RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


@pytest.fixture(scope="module")
def processor() -> EmuProcessor:
    """A processor that scales pixels to colour / 255."""
    pixels = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return EmuProcessor(pixels, train_tokenizer(["a cat and a dog"], 300), N)


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    if transparent:
        image.info["transparency"] = 1
    return image


def sideways() -> Image.Image:
    """An image with a red upper half after applying its EXIF orientation."""
    lying = np.zeros((8, 8, 3), dtype=np.uint8)
    lying[:, 0:4, 0] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(lying).save(file, "PNG", exif=exif)
    return Image.open(file)


def pixels(processor: EmuProcessor, image: object) -> torch.Tensor:
    """The pixels of one image as the model sees them, [3, S, S] in 0..255."""
    return processor([image])["pixel_values"][0] * 255


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (5, 7), 90), (90, 90, 90)),
        (Image.new("1", (5, 7), 1), (255, 255, 255)),
        (Image.new("RGB", (1, 1), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (1, 900), 3), (3, 3, 3)),
        (Image.new("RGBA", (6, 6), (9, 200, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (6, 6), (9, 200, 30, 255)), (9, 200, 30)),
        (Image.new("LA", (6, 6), (40, 0)), (255, 255, 255)),
        (palette(transparent=False), (200, 100, 50)),
        (palette(transparent=True), (255, 255, 255)),
        (Image.new("CMYK", (6, 6), (0, 0, 0, 255)), (0, 0, 0)),
        (Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 65535, dtype=np.int32)), (255, 255, 255)),
        (np.full((3, 4), 7, dtype=np.uint8), (7, 7, 7)),
        (np.full((3, 4, 1), 7, dtype=np.uint8), (7, 7, 7)),
        (torch.full((1, 3, 4), 7, dtype=torch.uint8), (7, 7, 7)),
        (torch.tensor([1, 2, 3, 255], dtype=torch.uint8)[:, None, None].expand(4, 2, 2), (1, 2, 3)),
    ],
)
def test_one_colour(image: object, colour: tuple[int, int, int], processor: EmuProcessor) -> None:
    wanted = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, SIZE, SIZE)
    assert (pixels(processor, image) - wanted).abs().max() < 0.01


def test_16_bit_is_scaled_not_clipped(processor: EmuProcessor) -> None:
    seen = pixels(processor, Image.fromarray(RAMP))
    assert (seen - torch.from_numpy(RAMP / 257.0).float()).abs().max() <= 1
    assert seen.unique().numel() > 60


def test_exif_orientation_is_applied(processor: EmuProcessor) -> None:
    seen = pixels(processor, sideways())
    assert (seen[0, :4] == 255).all() and (seen[0, 4:] == 0).all() and (seen[1:] == 0).all()


@pytest.mark.parametrize("image", [Image.fromarray(RAMP), sideways(), palette(True), palette(False)])
def test_training_reads_the_same(image: Image.Image) -> None:
    ours = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    assert torch.equal(ImageReader(num_channels=3).read(image), ours)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (RAMP, "uint8"),
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 5), dtype=np.uint8), r"\[4, 4, 5\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\[0, 4, 3\]"),
        (torch.zeros(3, 4, 4), "uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"\[C, H, W\]"),
        (Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), "pixels of mode F have no known range"),
        (Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "pixels of mode I have no known range"),
        (Image.new("L", (8001, 8000)), "the maximum is 64,000,000"),
        (5, "not int"),
    ],
)
def test_invalid_images(image: object, words: str, processor: EmuProcessor) -> None:
    with pytest.raises(ValueError, match=words):
        processor([image])


def test_unequal_numbers_of_images_in_a_batch(processor: EmuProcessor) -> None:
    """Prompts with two, none, one and three images are independent, and pixels are in reading order."""
    grey = [Image.new("L", (4, 4), 40 * i) for i in range(6)]
    prompts = [
        ["a", grey[0], "cat", grey[1]],
        ["a dog"],
        [grey[2]],
        [{"image": grey[3]}, {"video": [grey[4], grey[5]]}, "and"],
    ]
    batch = processor(prompts)
    assert torch.equal((batch["pixel_values"][:, 0, 0, 0] * 255).round(), torch.arange(6.0) * 40)
    places = (batch["input_ids"] == processor.ids["<image>"]).sum(1)
    assert places.tolist() == [2 * N, 0, N, 3 * N]
    for row, prompt in enumerate(prompts):
        alone = processor(prompt)
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row, kept], alone["input_ids"][0])
        assert not kept[: len(kept) - int(kept.sum())].any()  # padded on the left
    assert "pixel_values" not in processor([["a dog"], ["a cat"]])
