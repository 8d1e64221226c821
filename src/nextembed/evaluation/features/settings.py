"""How images are embedded: settings of `embed`, in Python and as options."""

from typing import Literal

from pydantic import Field

from ...core.config import Config


class EmbedSettings(Config):
    """Which features are read, and how the file is written. Of the first four, values that are not given come from the
    best row of RUN/probe.json that matches the others; see `Encoder`.

    Attributes:
        layer: 0 is the latents, -1 the output; the best layer in RUN/probe.json if left out.
        pooling: how the hidden states of an image are pooled into one vector.
        attention: attention mode; as in training if left out.
        weights: trained weights (raw) or their average (ema).
        precision: precision of the forward pass.
        dtype: type of the features in the file.
        batch_size: images per forward pass.
        num_workers: threads that read and decode.
        limit: use only this many images, from the first.
        part_seconds: maximum seconds of work that are lost if the process is killed.
    """

    layer: int | None = None
    pooling: Literal["mean", "last", "first"] | None = None
    attention: Literal["causal", "full"] | None = None
    weights: Literal["raw", "ema"] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: int = Field(64, ge=1, le=10**6)
    num_workers: int = Field(2, ge=0, le=256)
    limit: int | None = Field(None, ge=1, le=10**15)
    part_seconds: float = Field(30.0, ge=0)


class ManySettings(EmbedSettings):
    """How features are written as many files, on this machine or on several.

    Attributes:
        shard_rows: write a folder of files with this many rows of the source each, instead of a single file.
        engine: what computes the files, which are the same bit for bit; ray divides them among processes and machines.
        ray_address: address of a Ray cluster; a local one is started if left out.
        ray_workers: processes of Ray, each with its own copy of the model; one for each GPU, else one, if left out.
    """

    shard_rows: int | None = Field(None, ge=1, le=10**9)
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    ray_workers: int | None = Field(None, ge=1, le=10**5)


MANY = ("shard_rows", "engine", "ray_address", "ray_workers")
