"""How a source is written as shards: settings of `shard`, in Python and as options."""

from typing import Literal

from pydantic import Field

from ..core.config import Config
from ..core.types import Role


class ShardSettings(Config):
    """How shards are cut, and what goes into them.

    Attributes:
        format: what the shards are; images go into tar, other tables into parquet if left out (JSON lines
            stay JSON lines).
        shard_size: MiB of data after which a shard ends.
        shuffle: seed for shuffling all rows; in the order of the source if left out.
        splits: only this split; may be repeated. All that the source has, if left out.
        check: decode each image to find those that cannot be read, or only see that it is there.
        num_workers: threads that read and decode.
    """

    format: Literal["tar", "parquet"] | None = None
    shard_size: float = Field(256.0, gt=0, le=10**6)
    shuffle: int | None = Field(None, ge=0, lt=2**63)
    splits: list[Role] | None = Field(None, json_schema_extra={"option": "--split"})
    check: Literal["decode", "exists"] = "decode"
    num_workers: int = Field(2, ge=0, le=256)
