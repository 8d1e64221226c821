"""Rows of documents, read as in training."""

import json
from pathlib import Path
from typing import Any

from nextembed.core.config import DATA
from nextembed.core.types import Loading

OMNI = {"text": {}, "image": {"image_size": 8, "patch_size": 4}, "audio": {}}


def encode() -> Any:
    from nextembed.models.omni.settings import OmniParts

    return OmniParts(modalities=OMNI).processor().encode_document


def part(kind: str, source: Path, streaming: bool, **settings: Any) -> Any:
    return DATA.parse({"kind": kind, "source": str(source), "streaming": streaming, "max_skipped_rate": 1.0,
                       "num_workers": 0, "num_readers": 1, "shuffle_buffer": 1} | settings)  # fmt: skip


def trained(data: Any, count: int, skipped: Path) -> list[dict[str, Any]]:
    """Reads batches as in a run; returns the skipped rows with their reasons."""
    loader = data.train_loader(Loading(1, skipped_path=skipped), encode=encode(), max_length=400)
    for _, _ in zip(range(count), loader):
        pass
    return [json.loads(line) for line in skipped.read_text().splitlines()] if skipped.exists() else []
