"""What a run is planned for: settings of `plan`, in Python and as options."""

from pydantic import Field

from ..core.config import Config


class PlanSettings(Config):
    """The machine that trains, and what the settings of a run do not say."""

    devices: int = Field(1, ge=1, le=10**6, description="Devices that train together.")
    memory: float = Field(80, ge=1e-6, le=1e9, description="GiB of each device.")
    utilisation: float = Field(0.4, gt=0, le=1, description="Share of the peak that training reaches.")
    peak: str = Field(
        "a100",
        description="TFLOP/s of a device: a100, h100, h200, b200, mi300x, l40s, a10, 4090, 3090, or a number.",
        json_schema_extra={"option": "--peak-tflops"},
    )
    samples: int | None = Field(None, ge=1, description="Training samples, where a length is in epochs.")
    classes: int = Field(1000, ge=2, le=10**6, description="Where the settings do not list them.")
