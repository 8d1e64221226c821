"""How images are embedded: settings of `embed`, in Python and as options."""

from typing import Literal

from pydantic import Field

from ...core.config import Config


class EmbedSettings(Config):
    """Where features are read, and how the file is written. What of the first four is not named is taken from the best
    row of RUN/probe.json that agrees with what is; see `Encoder`."""

    layer: int | None = Field(
        None, description="0 is the latents, -1 the output; if left out, what RUN/probe.json found best."
    )
    pooling: Literal["mean", "last", "first"] | None = Field(None, description="Of the latents.")
    attention: Literal["causal", "full"] | None = Field(None, description="As it was trained, if left out.")
    weights: Literal["raw", "ema"] | None = Field(None, description="Which weights.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of the forward pass.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Of the file.")
    batch_size: int = Field(64, ge=1, le=10**6, description="Images a forward pass.")
    num_workers: int = Field(2, ge=0, le=256, description="Threads that read and decode.")
    limit: int | None = Field(None, ge=1, le=10**15, description="The first images only.")
    part_seconds: float = Field(30.0, ge=0, description="Work that a kill may cost, at most.")
