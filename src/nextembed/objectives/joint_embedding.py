"""Joint embeddings: several crops of an image should have the same vector. SimSiam and LeJEPA.

Shapes: B images, V crops of each, K width of the vectors.
"""

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import (
    OBJECTIVES,
    Accumulation,
    History,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
    Verdict,
    ViewSettings,
)
from ..core.optim import OptimConfig
from ..core.sizes import MAX_WIDTH
from ..core.types import Attention, Backbone, Batch, Hidden, PatchConfig
from ..errors import ConfigError
from ..nn.diagnostics import effective_rank
from ..nn.heads import projector, summed

COLLAPSED = 0.3  # spread of vectors, relative to random ones, below which they have collapsed


class JointSettings(ObjectiveSettings):
    """Settings that SimSiam and LeJEPA share.

    Attributes:
        crops: which parts of each image are compared.
    """

    crops: ViewSettings = ViewSettings()

    @property
    def views(self) -> ViewSettings:
        return self.crops

    @property
    def accumulation(self) -> Accumulation:
        return "per micro batch"  # statistics of the images of a micro batch

    def verdict(self, history: History) -> Verdict:
        found = [line for line in history if "embedding_spread" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        spread, agreement = found[-1]["embedding_spread"], found[-1]["view_agreement"]
        said = f"two crops of an image have cosine {agreement:.2f}, the spread over images is {spread:.2f} of 1"
        if spread < COLLAPSED:
            return Verdict("collapsed", f"All images have nearly the same vector: {said}. Lower the learning rate.")
        if agreement < 0.5:
            return Verdict("undecided", f"Crops of an image do not agree yet: {said}. Train longer.")
        return Verdict("learning", f"{said[0].upper()}{said[1:]}.")


class Joint(Objective):
    """Vectors of crops: the mean over the patches of the last hidden states, under full attention."""

    def vectors(self, backbone: Backbone, batch: Batch, crops: Tensor) -> Tensor:
        """[B, V, D] of crops [B, V, C, H, W]."""
        flat = crops.flatten(0, 1)
        latents = backbone.embed({"pixel_values": flat})
        hidden = backbone.encode(latents, "full").last
        return hidden[:, 1:].mean(1).unflatten(0, crops.shape[:2])

    def count_targets(self, batch: Batch) -> Tensor:
        """Images."""
        return torch.tensor(len(batch["global_views"]), device=batch["global_views"].device)

    def metrics_of(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Diagnostics of the vectors of two crops [B, K]. embedding_spread: standard deviation of the unit vectors over
        images, 1 for random directions, 0 if all are the same."""
        one, two = F.normalize(first.detach().float(), dim=-1), F.normalize(second.detach().float(), dim=-1)
        spread = one.std(0, unbiased=False).square().sum().sqrt()
        return {
            "embedding_spread": spread,
            "view_agreement": (one * two).sum(-1).mean(),
            "embedding_rank": effective_rank(first.detach().float()),
        }

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(batch), attention or "full", output_layers)


def check_images(backbone: Backbone, kind: str) -> None:
    """Raises ConfigError for a backbone that does not read image patches."""
    if not isinstance(backbone.config, PatchConfig):
        raise ConfigError(f"objective {kind} needs a model of image patches: model.kind=vit_nepa")


@OBJECTIVES.register("simsiam")
class SimSiamSettings(JointSettings):
    """Two crops of an image predict each other's vector, with a stop-gradient and nothing else:

        z = projector(f(crop)),  p = predictor(z)
        loss = -1/2 (cosine(p1, sg(z2)) + cosine(p2, sg(z1)))

    Attributes:
        width: width of the projector's vectors (2048 in the paper); the predictor's hidden layer has a quarter of it.

    Source:
        SimSiam (arXiv 2011.10566), Algorithm 1; batch norm in the projector (the last without parameters) and in the
        hidden layer of the predictor, over all ranks. Ours has NEPA's backbone in place of a ResNet, mean pooling,
        AdamW in place of SGD, and crops and flips alone: colours are not distorted.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=5e-4, weight_decay=0.05, warmup_rate=0.1)

    width: int = Field(256, ge=4, le=MAX_WIDTH)
    crops: ViewSettings = ViewSettings(num_global=2, global_scale=(0.2, 1.0))

    def build(self, backbone: Backbone) -> "SimSiam":
        check_images(backbone, "simsiam")
        if self.crops.num_global != 2 or self.crops.num_local:
            raise ConfigError("objective simsiam compares two crops: crops.num_global=2 and crops.num_local=0")
        return SimSiam(self, backbone)


class SimSiam(Joint):
    """The objective of `SimSiamSettings`."""

    settings: SimSiamSettings

    def __init__(self, settings: SimSiamSettings, backbone: Backbone):
        super().__init__(settings)
        width = settings.width
        self.projector = projector([backbone.config.hidden_size, width, width, width], last_affine=False)
        self.predictor = projector([width, width // 4, width])

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        crops = batch["global_views"]
        if self.training and len(crops) < 2:
            raise ConfigError("objective simsiam has batch norms: train.micro_batch_size should be 2 or more")
        vectors = self.vectors(backbone, batch, crops)
        z = [self.projector(vectors[:, view]) for view in range(2)]
        p = [self.predictor(one) for one in z]
        cosines = F.cosine_similarity(p[0], z[1].detach(), dim=-1) + F.cosine_similarity(p[1], z[0].detach(), dim=-1)
        metrics = self.metrics_of(z[0], z[1]) if self.diagnose else None
        return ObjectiveOutput(
            loss_sum=-cosines.float().sum() / 2, num_targets=self.count_targets(batch), metrics=metrics
        )


@OBJECTIVES.register("lejepa")
class LeJepaSettings(JointSettings):
    """Crops of an image agree, and the vectors of a batch are Gaussian; no teacher, no stop-gradient:

        z_v = projector(f(crop v)),  centre = mean of z over the large crops
        loss = (1 - weight) mean_v |z_v - centre|^2 / K + weight mean_v SIGReg({z_v of the batch})
        SIGReg = mean over directions a of N * 2 * integral_0^3 |phi_N(t; a) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

    where phi_N is the empirical characteristic function of the N projections a^T z of the batch, on all ranks, and the
    integral is a trapezoid rule with 17 points.

    Attributes:
        weight: share of SIGReg in the loss.
        width: K, of the projector's vectors.
        num_directions: directions a, drawn anew for each step, the same on all ranks.

    Source:
        LeJEPA (arXiv 2511.08544); the factor N, the images of all ranks, is that of the paper's package (other public
        codes leave it out: their weight is ours times N). Ours divides the distance by K.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=5e-4, weight_decay=0.05, warmup_rate=0.1)

    weight: float = Field(0.05, ge=0, le=1)
    width: int = Field(64, gt=0, le=MAX_WIDTH)
    num_directions: int = Field(256, gt=0, le=MAX_WIDTH)
    crops: ViewSettings = ViewSettings(num_global=2, num_local=2)

    def build(self, backbone: Backbone) -> "LeJepa":
        check_images(backbone, "lejepa")
        if self.crops.num_global + self.crops.num_local < 2:
            raise ConfigError("objective lejepa compares crops: crops.num_global and crops.num_local give two or more")
        return LeJepa(self, backbone)


class LeJepa(Joint):
    """The objective of `LeJepaSettings`."""

    settings: LeJepaSettings

    def __init__(self, settings: LeJepaSettings, backbone: Backbone):
        super().__init__(settings)
        hidden = 2 * settings.width
        self.projector = nn.Sequential(
            nn.Linear(backbone.config.hidden_size, hidden), nn.GELU(), nn.Linear(hidden, settings.width)
        )

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        large = self.projector(self.vectors(backbone, batch, batch["global_views"])).float()
        every = large
        if self.settings.crops.num_local:
            small = self.projector(self.vectors(backbone, batch, batch["local_views"])).float()
            every = torch.cat((large, small), dim=1)
        centre = large.mean(1, keepdim=True)
        distance = (every - centre).square().mean(-1).mean(1)  # [B]
        directions = torch.randn(self.settings.width, self.settings.num_directions, device=every.device)
        if distributed.world_size() > 1:
            dist.broadcast(directions, src=0)  # a copy between devices, without synchronisation
        gaussian = torch.stack([batch_sigreg(every[:, view], directions) for view in range(every.shape[1])]).mean()
        weight, num = self.settings.weight, len(every)
        metrics = None
        if self.diagnose:
            metrics = self.metrics_of(every[:, 0], every[:, 1]) | {"gaussianity": gaussian.detach()}
        return ObjectiveOutput(
            loss_sum=(1 - weight) * distance.sum() + weight * gaussian * num,
            num_targets=self.count_targets(batch),
            metrics=metrics,
        )


def batch_sigreg(z: Tensor, directions: Tensor, knots: int = 17, limit: float = 3.0) -> Tensor:
    """How far N vectors [N, K], over all ranks, are from a standard normal distribution, []; see `LeJepaSettings`.

    directions [K, M]: columns are normalised here. Its expectation for normal vectors does not depend on N.
    """
    t = torch.linspace(0, limit, knots, device=z.device, dtype=torch.float32)
    angles = (z.float() @ F.normalize(directions.float(), dim=0))[..., None] * t  # [N, M, knots]
    sums = summed(torch.cat((angles.cos().sum(0), angles.sin().sum(0))))
    num = len(z) * distributed.world_size()
    real, imaginary = (sums / num).chunk(2)
    window = torch.exp(-t.square() / 2)
    distance = (real - window).square() + imaginary.square()
    return num * 2 * torch.trapezoid(distance * window, t, dim=-1).mean()
