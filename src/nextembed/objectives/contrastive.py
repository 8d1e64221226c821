"""Contrastive prediction: CPC, several steps ahead, with negatives from the same and from other images."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core.objective import OBJECTIVES, Accumulation, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.optim import OptimConfig
from ..core.types import AttentionMode, Backbone, Batch, CountsLatents, SizedConfig
from ..errors import ConfigError


@OBJECTIVES.register("cpc")
class CpcSettings(ObjectiveSettings):
    """Contrastive predictive coding on patches, in raster order:

        c = transformer(z)                                                   # causal: c[t] sees z[<= t]
        score_k(t, z') = norm(z')^T W_k c[t]                                 # one W a step, no bias
        loss = mean over k, t of -log softmax over candidates z' (score_k(t, z'))[z[t + k]]

    Candidates are all latents of the same image that are k or more from its start, and those at the place t + k of the
    other images of the micro batch; the true one is among them once.

    Attributes:
        steps: how many steps ahead are predicted, k = 1 .. steps.

    Source:
        CPC (arXiv 1807.03748, equation 4) and its second version (arXiv 1905.09272) for LayerNorm in place of batch
        norm, which leaks. Ours has one direction, and no overlapping crops: a patch shares no pixel with the next.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)
    attends: ClassVar[AttentionMode] = "causal"

    steps: int = Field(3, ge=1, le=1000)

    @property
    def accumulation(self) -> Accumulation:
        return "per micro batch"  # negatives come from other images of the micro batch

    def build(self, backbone: Backbone) -> "Cpc":
        if not isinstance(backbone, CountsLatents) or not isinstance(backbone.config, SizedConfig):
            raise ConfigError("objective cpc needs a model of image patches: model.kind=vit_nepa")
        size = backbone.config.image_size
        if (num := backbone.num_latents(size, size)) <= self.steps + 1:
            raise ConfigError(f"objective.steps {self.steps}: an image has only {num - 1} patches")
        return Cpc(self, backbone)

    def verdict(self, history: History) -> Verdict:
        found = [line for line in history if "contrast_top1" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        top1, chance = found[-1]["contrast_top1"], found[-1].get("contrast_chance", 0.0)
        said = (
            f"the true patch ranks first among the candidates in {100 * top1:.1f} % of cases (chance "
            f"{100 * chance:.1f} %)"
        )
        if top1 < 2 * chance:
            return Verdict("undecided", f"Hardly better than chance: {said}. Train longer.")
        return Verdict("learning", f"{said[0].upper()}{said[1:]}.")


class Cpc(Objective):
    """The objective of `CpcSettings`."""

    settings: CpcSettings

    def __init__(self, settings: CpcSettings, backbone: Backbone):
        super().__init__(settings)
        width = backbone.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.weights = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(settings.steps))
        for weight in self.weights:
            nn.init.normal_(weight.weight, std=1 / width)  # type: ignore[arg-type]

    def count_targets(self, batch: Batch) -> Tensor:
        mask = batch["latent_mask"]
        return torch.stack([mask[:, k:].sum() for k in range(1, self.settings.steps + 1)]).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents, mask = backbone.embed(batch), batch["latent_mask"]
        context = backbone.encode(latents.until(latents.z.shape[1] - 1), "causal").last
        keys = self.norm(latents.z)
        total = context.new_zeros((), dtype=torch.float32)
        right, chance = total.detach(), total.detach()
        for k, weight in enumerate(self.weights, 1):
            pred = weight(context[:, : context.shape[1] - k + 1])
            scores = candidates(pred, keys[:, k:], mask[:, k:])  # [B, T - k, T - k + B - 1]
            places = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
            losses = F.cross_entropy(scores.mT, places, reduction="none")
            total = total + (losses * mask[:, k:]).sum()
            if self.diagnose:
                hits = (scores.argmax(-1) == places) & mask[:, k:]
                right = right + hits.sum()
                chance = chance + (mask[:, k:] / scores.isfinite().sum(-1)).sum()
        count = self.count_targets(batch)
        metrics = None
        if self.diagnose:
            metrics = {"contrast_top1": (right, count.detach()), "contrast_chance": (chance, count.detach())}
        return ObjectiveOutput(loss_sum=total, num_targets=count, metrics=metrics)


def candidates(pred: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Scores of every candidate, [B, T, T + B - 1]: of the same image, then at the same place of the others.

    pred [B, T, D]: predictions for each position; keys [B, T, D]: latents at each position; mask [B, T]: False for
    padding, which is not a candidate. For position t, candidate t is right.
    """
    own = torch.einsum("btd,bsd->bts", pred, keys).float()
    own = own.masked_fill(~mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device), -math.inf)
    others = torch.einsum("btd,ctd->btc", pred, keys).float().masked_fill(~mask.T[None], -math.inf)
    num = len(pred)
    rest = ~torch.eye(num, dtype=torch.bool, device=pred.device)
    others = (
        others.permute(0, 2, 1)[rest].view(num, num - 1, -1).mT
    )  # without the image itself, whose latents are candidates already
    return torch.cat((own, others), dim=-1)
