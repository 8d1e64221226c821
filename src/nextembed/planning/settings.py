"""Settings of `plan`, in Python and as options."""

from pydantic import Field

from ..core.config import Config


class PlanSettings(Config):
    """The machine that trains, and what the settings of a run do not say.

    Attributes:
        devices: devices that train together.
        memory: memory of each device, GiB.
        utilisation: share of the peak that training reaches.
        peak: TFLOP/s of a device: a100, h100, h200, b200, mi300x, l40s, a10, 4090, 3090, or a number.
        samples: training samples, where a length is in epochs.
        classes: number of classes, where the settings do not list them.
    """

    devices: int = Field(1, ge=1, le=10**6)
    memory: float = Field(80, ge=1e-6, le=1e9)
    utilisation: float = Field(0.4, gt=0, le=1)
    peak: str = Field("a100", json_schema_extra={"option": "--peak-tflops"})
    samples: int | None = Field(None, ge=1)
    classes: int = Field(1000, ge=2, le=10**6)
