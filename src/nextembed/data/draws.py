"""Random numbers of a sample, which depend only on the run's seed, the epoch and the sample's key."""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ..core.objective import ObjectiveSettings
from ..core.types import Document, Draw, Encode, Encoded

MASK = 2**64 - 1


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """A 64-bit seed that only depends on (seed, epoch, key)."""
    text = f"{seed}/{epoch}/{key}".encode(errors="surrogatepass")  # of a file name that is not UTF-8
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def view_seed(seed: int, view: int) -> int:
    """The seed of one of several crops of a sample; the first has the sample's own."""
    return seed if view == 0 else sample_seed(seed, view, "view")


def signed(seeds: Sequence[int]) -> Tensor:
    """64-bit seeds as int64 [B], for `core.randomness`."""
    return torch.tensor([seed - 2**63 for seed in seeds], dtype=torch.int64)


def uniform(seed: int, index: int) -> float:
    """Number `index` of the sequence of a 64-bit seed, in [0, 1): SplitMix64 (Steele, Lea and Flood 2014).

    Each number is one small function of (seed, index), so a generator for each sample costs nothing to set up.
    """
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


class Draws:
    """Random numbers of a seed, one after the other; they do not depend on the versions of libraries."""

    def __init__(self, seed: int):
        self.seed, self.index = seed, 0

    def share(self) -> float:
        """In [0, 1)."""
        self.index += 1
        return uniform(self.seed, self.index - 1)

    def below(self, number: int) -> int:
        """In 0..number - 1."""
        return math.floor(self.share() * number)


def drawing(settings: ObjectiveSettings) -> Draw | None:
    """The `draw` of an objective; None if it draws nothing, because a call for each sample would cost time."""
    return None if type(settings).draw is ObjectiveSettings.draw else settings.draw


def drawn_for(draw: Draw, sample: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """What is drawn for one sample. Crops use its seed, too, through another generator: the two are unrelated."""
    return draw(sample, torch.Generator().manual_seed(seed % 2**63))


class DrawnEncode:
    """Encodes a document and adds what the objective draws for it."""

    def __init__(self, encode: Encode, draw: Draw):
        self.encode, self.draw = encode, draw

    def __call__(self, document: Document) -> Encoded:
        encoded = self.encode(document)
        drawn = drawn_for(self.draw, encoded.positions, document.get("seed", 0))
        return Encoded({**encoded.positions, **drawn}, encoded.values)
