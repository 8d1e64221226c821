"""What devices can compute: peak rates of dense matrix products, from their makers' data sheets."""

from typing import NamedTuple

from ..errors import ConfigError, unknown


class Peak(NamedTuple):
    """TFLOP/s (10^12 operations a second) by precision. float32: without TF32, which is torch's default."""

    bf16: float
    float32: float


PEAKS = {
    "a100": Peak(312, 19.5),
    "h100": Peak(989, 67),
    "h200": Peak(989, 67),
    "b200": Peak(2250, 75),
    "mi300x": Peak(1307, 163),
    "l40s": Peak(362, 91.6),
    "a10": Peak(125, 31.2),
    "4090": Peak(165, 82.6),
    "3090": Peak(71, 35.6),
}


def peak_tflops(device: str | float, precision: str) -> float:
    """TFLOP/s of a preset's name, or a number as it is. Raises ConfigError for anything else."""
    if str(device).lower() in PEAKS:  # also 4090
        peak = PEAKS[str(device).lower()]
        return peak.bf16 if precision == "bf16" else peak.float32
    try:
        value = float(device)
    except ValueError:
        raise ConfigError(unknown("--peak-tflops: device", device, PEAKS) + " Or a number.") from None
    if not 0 < value < float("inf"):
        raise ConfigError(f"--peak-tflops {device}: a number above 0 is needed")
    return value
