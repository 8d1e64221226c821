"""Text: tokens of a byte-level BPE, or bytes; latents are rows of a table, and decoding finds the nearest row."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.text import check_text
from .base import MODALITIES, Modality, Patches, in_time

BUNDLED = Path(__file__).parents[1] / "data" / "sample" / "tokenizer"


@MODALITIES.register("text")
class Text(Modality):
    """Text as tokens, one latent each.

    vocabulary: "bytes" (256 of them, any text in any script), or the number of tokens of the model's tokenizer. A
    latent is decoded to the token whose row has the highest cosine; the table is the input's own (tied).
    """

    tokenizer: Any = None  # set by the processor: the tokenizer, unless text is bytes

    def __init__(self, hidden_size: int, vocabulary: str | int = "bytes"):
        super().__init__()
        if vocabulary != "bytes" and (not isinstance(vocabulary, int) or vocabulary < 2):
            raise ValueError(f"vocabulary is 'bytes' or a number of tokens, not {vocabulary!r}")
        self.vocabulary = vocabulary
        self.table = nn.Embedding(256 if vocabulary == "bytes" else int(vocabulary), hidden_size)

    def patches(self, value: str) -> Patches:
        if not isinstance(value, str):
            raise ValueError(f"text is a str, not {type(value).__name__}")
        check_text(value)
        if self.vocabulary == "bytes":
            ids = list(value.encode())
        else:
            ids = self.tokenizer(value, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if ids and max(ids) >= int(self.vocabulary):
                raise ValueError(f"the tokenizer has more tokens than the vocabulary of {self.vocabulary}")
        return Patches(torch.tensor(ids, dtype=torch.int64), in_time(len(ids)), (len(ids),))

    def embed(self, values: Tensor) -> Tensor:
        return self.table(values)

    def signal(self, values: Tensor, shape: tuple[int, ...] = ()) -> str:
        """The text of ids [N]; bytes that are not UTF-8 become the replacement character."""
        if self.vocabulary == "bytes":
            return bytes(values.tolist()).decode(errors="replace")
        return self.tokenizer.decode(values.tolist(), skip_special_tokens=True)
