"""Settings of the studio."""

from pydantic import Field

from ..core.config import Config


class StudioSettings(Config):
    """Where the studio is served, and how much it takes.

    Attributes:
        host: address to listen on; any but a loopback one asks for the token of the printed link.
        port: port to listen on; 0 takes a free one.
        refresh_seconds: seconds between two looks at the runs.
        max_models: models kept in memory; the one unused for longest is dropped first.
        max_upload_mb: largest uploaded file, in megabytes.
        max_pixels: largest uploaded image, in pixels.
    """

    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    refresh_seconds: float = Field(2.0, ge=0.5, le=3600)
    max_models: int = Field(2, ge=1, le=16)
    max_upload_mb: int = Field(50, ge=1, le=2000)
    max_pixels: int = Field(64_000_000, ge=1, le=10**9)
