"""One frame of a video as players show it: upright, with its aspect ratio, on white, HDR mapped to a standard
screen."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

PQ, HLG = 16, 18  # transfer functions, by their numbers in ITU-T H.273
WHITE = 203.0  # cd/m2 of white on a standard screen (ITU-R BT.2408); brighter pixels become white
PEAK = 1000.0  # cd/m2 of the screen that HLG is meant for
TO_709 = np.array(  # BT.2020's primaries in those of BT.709 (ITU-R BT.2407)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def plainly(frame: Any, **wanted: object) -> np.ndarray:
    pixels: np.ndarray = frame.to_ndarray(**wanted)
    return pixels


def as_shown(frame: Any, ratio: float = 1.0, convert: Callable[..., np.ndarray] = plainly) -> np.ndarray:
    """uint8 [H, W, 3]: rotated and mirrored by its display matrix, transparent pixels on white, as for images. ratio:
    width of a pixel divided by its height, from its container. convert: gives the pixels in a format
    (`Containers.converter`).
    """
    size = {"width": shown_width(frame.width, ratio)} if ratio != 1 else {}
    if any(component.is_alpha for component in frame.format.components):
        rgba = convert(frame, format="rgba", **size).astype(np.uint16)
        alpha = rgba[..., 3:]
        pixels = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif frame.color_trc in (PQ, HLG):
        pixels = dimmed(convert(frame, format="rgb48le", **size), int(frame.color_trc))
    else:
        pixels = convert(frame, format="rgb24", **size)
    found = next((one for one in frame.side_data if one.type.name == "DISPLAYMATRIX"), None)
    if found is None:
        return pixels
    # (x, y) is shown at (a x + c y, b x + d y), moved into sight.
    a, b, _, c, d, *_ = np.frombuffer(bytes(found), np.int32)[:9].tolist()
    right, down = (a, d) if abs(a) >= abs(b) else (c, b)
    pixels = pixels if abs(a) >= abs(b) else pixels.transpose(1, 0, 2)
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def shown_width(width: int, ratio: float) -> int:
    """The width of a frame in square pixels."""
    return max(1, round(width * ratio))


def dimmed(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """HDR pixels (uint16 [H, W, 3], BT.2020) mapped to a standard screen, uint8 [H, W, 3]; white is at 203 cd/m2."""
    light = light_of(transfer)[pixels]
    if transfer == HLG:
        light *= np.maximum(light @ LUMA, 1e-6)[..., None] ** 0.2 * (PEAK / WHITE)
    light = np.clip(light @ TO_709.T, 0, 1)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # sRGB
    return np.asarray(np.round(shown * 255), np.uint8)


@cache
def light_of(transfer: int) -> np.ndarray:
    """Light by the value of a pixel, float32 [65536]: of PQ as a share of white (SMPTE ST 2084), of HLG as a share of
    the scene's brightest (ARIB STD-B67)."""
    value = np.arange(65536) / 65535
    if transfer == PQ:
        power = value ** (32 / 2523)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return np.asarray(nits / WHITE, np.float32)
    dark, bright = value**2 / 3, (np.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.asarray(np.where(value <= 0.5, dark, bright), np.float32)
