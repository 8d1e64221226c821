"""How Omni's predictions are compared with targets: by cosine, a softmax over tables, or a density.

Shapes: B rows, T positions of packed documents, D hidden_size, V rows of all tables.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...core.types import Batch, Metrics, Scoring
from ...errors import ConfigError, unknown
from ...nn import losses
from ...nn.diagnostics import diagnose_pairs
from ...nn.sampled import AnyDensityHead, SampledHead
from .configuration_omni import BEGIN


class Codes(NamedTuple):
    """The latents that are rows of tables: begin latents, the end latent, tokens of text.

    table [V, D]; codes [B, T], int64: the row of each position, -1 for other positions; log_scale []: of cosines in a
    softmax.
    """

    table: Tensor
    codes: Tensor
    log_scale: Tensor


class ScoredModel(Protocol):
    """The part of an `OmniForPreTraining` that is needed here."""

    density_head: AnyDensityHead | None

    @property
    def kind_names(self) -> list[str]: ...
    def codes(self, batch: Batch) -> Codes: ...


def check(model: ScoredModel, scoring: Scoring) -> None:
    """Raises ConfigError for a distance or weights that the model does not have."""
    if model.density_head is None:
        if scoring.distance == "likelihood":
            raise ConfigError("objective.distance=likelihood needs model.density=von_mises_fisher or mixture")
    elif scoring.distance not in ("likelihood", "vocabulary"):
        raise ConfigError("model.density is trained by objective.distance=likelihood or vocabulary")
    elif isinstance(model.density_head, SampledHead) and scoring.distance == "likelihood":
        raise ConfigError(
            "model.density=flow and energy have no likelihood of tokens: train them by objective.distance=vocabulary"
        )
    if scoring.distance in ("info_nce", "sigreg"):
        raise ConfigError(f"objective.distance={scoring.distance} is for images, not for packed documents")
    for name in scoring.weights:
        if name not in model.kind_names:
            raise ConfigError(unknown("objective.weights:", name, model.kind_names))


class OmniScorer:
    """Compares predictions of one batch; see `core.types.Scorer`."""

    def __init__(self, model: ScoredModel, batch: Batch, scoring: Scoring):
        self.scoring, self.names = scoring, model.kind_names
        self.kinds: Tensor = batch["kinds"]
        self.documents: Tensor = batch["document_ids"]
        self.codes: Codes = model.codes(batch)
        self.density = model.density_head if scoring.distance in ("likelihood", "vocabulary") else None
        self.weight: Tensor | None = None
        if scoring.weights:
            own = [1.0, *(scoring.weights.get(name, 1.0) for name in self.names)]  # padding comes first
            self.weight = torch.tensor(own, device=self.kinds.device)[self.kinds]

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """pred, target [B, T - 1, D]: what follows each position; mask [B, T - 1], bool -> [B, T - 1]."""
        # --8<-- [start:distance]
        kind = self.scoring.distance
        if kind == "vocabulary":
            found = self._vocabulary(pred, target, mask)
        elif kind == "likelihood":
            assert self.density is not None  # ensured by `check`
            found = self.density.distance(pred, target, None)
        else:
            found = losses.regression_distance(pred, target, kind)
        found = found + 0.0 * self.codes.log_scale  # every rank has to use every parameter in every step
        return found if self.weight is None else found * self.weight[:, 1:]
        # --8<-- [end:distance]

    def _vocabulary(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Cross-entropy of a softmax where the target is a row of a table; elsewhere the density, or cosine."""
        table, codes = self.codes.table, self.codes.codes[:, 1:]
        wanted = torch.ones_like(codes, dtype=torch.bool) if mask is None else mask
        chosen = wanted & (codes >= 0)
        others = wanted & ~chosen  # a density over many directions is only computed where it is needed
        if self.density is None:
            found = losses.negative_cosine(pred[others], target[others])
            distances = found.new_zeros(codes.shape).masked_scatter(others, found)
        else:
            distances = self.density.distance(pred, target, others)
        # --8<-- [start:vocabulary]
        table = table.detach() if self.scoring.stop_gradient_table else table
        scores = losses.vocabulary_scores(pred[chosen], table, self.codes.log_scale)
        return distances.masked_scatter(chosen, losses.cross_entropy(scores, codes[chosen]))
        # --8<-- [end:vocabulary]

    @torch.no_grad()
    def diagnose(self, z: Tensor, h: Tensor, target: Tensor, mask: Tensor | None) -> Metrics:
        """Diagnostics over targets whose current latent belongs to the same segment. By modality, too: how near
        predictions are, "cos_next/NAME"; how long latents are, "length/NAME"; how often the nearest row of the table is
        the right one, "top1/NAME".

        z, target [B, T, D]; h [B, T or T - 1, D]; mask [B, T]: what may be a target.
        """
        pred = h if self.density is None else self.density(h).mean()
        pred, following = losses.shifted(pred, z)
        kinds, documents = self.kinds, self.documents
        valid = torch.ones_like(kinds[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:]
        inside = valid & (kinds[:, 1:] == kinds[:, :-1]) & (documents[:, 1:] == documents[:, :-1])
        found: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
        if bool(inside.any()):
            states = h[:, : z.shape[1] - 1][inside]
            found |= diagnose_pairs(pred[inside], z[:, :-1][inside], following[inside], following[inside], states)
        to_next = -losses.negative_cosine(pred, following)
        for number, name in enumerate(self.names, BEGIN):
            own = valid & (kinds[:, 1:] == number)
            found[f"cos_next/{name}"] = (to_next[own].sum(), own.sum())
            found[f"length/{name}"] = (torch.linalg.vector_norm(following[own].float(), dim=-1).sum(), own.sum())
            coded = own & (self.codes.codes[:, 1:] >= 0)
            if bool(coded.any()):
                scores = losses.vocabulary_scores(pred[coded], self.codes.table, self.codes.log_scale)
                right = scores.argmax(-1) == self.codes.codes[:, 1:][coded]
                found[f"top1/{name}"] = (right.sum(), coded.sum())
        return found
