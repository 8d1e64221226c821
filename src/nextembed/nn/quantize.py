"""Codebooks: a vector becomes the index of the nearest of K codes.

Shapes: N vectors of V values, K codes.
"""

import torch
from torch import Tensor, nn

from ..core import distributed

SEEDS_EACH = 64  # vectors for each code that k-means++ looks at
CHUNK = 8192  # vectors whose distances to all codes are held at once


class Codebook(nn.Module):
    """K-means codes of vectors, [K, V]; fitted once, saved with the module.

    Source: Lloyd (1982) from k-means++ (Arthur and Vassilvitskii 2007); one empty code per round moves to the vector
    that is farthest from its code.
    """

    codes: Tensor
    fitted: Tensor

    def __init__(self, num_codes: int, width: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(num_codes, width))
        self.register_buffer("fitted", torch.tensor(False))

    def ids(self, x: Tensor) -> Tensor:
        """The nearest code of each vector; the first of several equally near ones.

        Args:
            x: [..., V].

        Returns:
            int64 [...].
        """
        return nearest(x, self.codes)

    def decode(self, ids: Tensor) -> Tensor:
        """The vectors of codes.

        Args:
            ids: int64 [...].

        Returns:
            [..., V].
        """
        return self.codes[ids]

    @torch.no_grad()
    def fit(self, x: Tensor, rounds: int = 20, seed: int = 0) -> None:
        """Fits the codes to the vectors of all ranks (k-means); every rank has to call it.

        Args:
            x: [N, V].
            rounds: iterations.
            seed: of the first codes.

        Raises:
            ValueError: there are fewer distinct vectors than codes.
        """
        x = x.detach().float().cpu()
        distinct = torch.unique(torch.cat(distributed.gather_objects(torch.unique(x, dim=0))), dim=0)
        num = len(self.codes)
        if len(distinct) < num:
            raise ValueError(f"{len(distinct)} different vectors for {num} codes")
        codes = first_codes(distinct, num, torch.Generator().manual_seed(seed))
        for _ in range(rounds):
            codes = self._moved(x, codes)
        self.codes.copy_(codes)
        self.fitted.fill_(True)

    def _moved(self, x: Tensor, codes: Tensor) -> Tensor:
        """The mean of each code's vectors, over all ranks."""
        sums, counts = torch.zeros_like(codes, dtype=torch.float64), torch.zeros(len(codes), dtype=torch.float64)
        far, farthest = -1.0, x[:0]
        for part in x.split(CHUNK):
            distance, ids = torch.cdist(part, codes).min(-1)
            sums.index_add_(0, ids, part.double())
            counts += ids.bincount(minlength=len(codes))
            if float(distance.max()) > far:
                far, farthest = float(distance.max()), part[distance.argmax()][None]
        sums, counts = distributed.sum_over_ranks(sums), distributed.sum_over_ranks(counts)
        moved = (sums / counts.clamp(min=1)[:, None]).float()
        if (empty := (counts == 0).nonzero()[:, 0]).numel():
            _, vector = max(distributed.gather_objects((far, farthest)), key=lambda pair: pair[0])
            moved[empty] = codes[empty]
            moved[empty[0]] = vector[0]
        return moved


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """The nearest code of each vector; the first of several equally near ones.

    Args:
        x: [..., V].
        codes: [K, V].

    Returns:
        int64 [...].
    """
    flat = x.detach().float().flatten(0, -2)
    found = [torch.cdist(part, codes).argmin(-1) for part in flat.split(CHUNK)]
    return torch.cat(found).view(x.shape[:-1]) if found else flat.new_zeros(x.shape[:-1], dtype=torch.int64)


def first_codes(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Initial codes (k-means++): each is drawn with a probability that grows with its squared distance to those drawn
    before. Of many vectors a random part is used.

    Args:
        x: [N, V].
        num: number of codes.
        generator: of the draws.

    Returns:
        [num, V].
    """
    x = x[torch.randperm(len(x), generator=generator)[: SEEDS_EACH * num]]
    chosen = [0]
    distance = (x - x[0]).square().sum(-1)
    for _ in range(num - 1):
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(-1))
    return x[chosen]
