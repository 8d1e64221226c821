"""Next-embedding prediction: NEPA, and the switches that its ablations and later variants need.

With the defaults this is NEPA's Algorithm 1 (arXiv 2512.16922):

    z = embed(image)                            # latents
    h = transformer(z)                          # causal: h[t] sees z[<= t]
    loss = -cosine(h[:, :-1], stop_gradient(z[:, 1:]))
"""

import copy
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..core.config import OBJECTIVES, Part
from ..core.types import Backbone, Batch, Hidden, Latents, Objective, ObjectiveOutput
from ..errors import ConfigError, unknown
from ..nn import losses
from ..nn.diagnostics import MAX_ROWS, diagnose, effective_rank, spread


@OBJECTIVES.register("next_embedding")
class NextEmbeddingSettings(Part):
    """Switches of next-embedding prediction; the defaults are the paper's.

    It is for images (NEPA) and for packed documents of any modality (Omni) alike.

    shift: predict the next latent; False compares each position with itself (the paper's failing ablation).
    stop_gradient: no gradient into the targets; False collapses.
    causal: attention of the autoregressor.
    input_mask_rate: share of patches hidden from the autoregressor (they stay targets); drawn for each image.
    target: "latents" | "teacher" (an EMA copy of the backbone) | "hidden" (the backbone's own layer `target_layer`).
    target_layer: layer of the teacher or of the backbone; 0 is the latents, -1 the last layer.
    teacher_decay: of the EMA teacher, for each optimizer step.
    distance: "cosine" | "mse" | "smooth_l1" | "info_nce" (right target among the patches of its image)
        | "sigreg" (squared error in a projected space kept Gaussian by SIGReg, no stop-gradient; LeNEPA)
        | "vocabulary" (of Omni: where the target is a row of a table, as tokens are, cross-entropy of a softmax over
        cosines with all rows, with a learned temperature; elsewhere cosine, or the likelihood where there is a density)
        | "likelihood" (of Omni with a density: -log of the density relative to the uniform one, in nats).
    stop_gradient_table: whether the softmax of "vocabulary" trains the table only through what it feeds in; False
        trains it as an output, too, as GPT-2 does.
    weights: of the distance, by modality, e.g. {text: 2}; "begin" are the latents that say what comes next; 1 where
        nothing is said. For balance only.
    temperature: of info_nce. sigreg_weight, sigreg_width, sigreg_directions: of sigreg.
    steps_ahead: k, or several at once; each k beyond the first gets a linear head of its own.
    every_layer: add the mean loss of the layers before the last.
    """

    also_for: ClassVar[tuple[str, ...]] = ("multimodal",)

    shift: bool = True
    stop_gradient: bool = True
    causal: bool = True
    input_mask_rate: float = Field(0.0, ge=0, lt=1)
    target: Literal["latents", "teacher", "hidden"] = "latents"
    target_layer: int = 0
    teacher_decay: float = Field(0.996, ge=0, le=1)
    distance: Literal["cosine", "mse", "smooth_l1", "info_nce", "sigreg", "vocabulary", "likelihood"] = "cosine"
    stop_gradient_table: bool = False
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    temperature: float = Field(0.1, gt=0)
    sigreg_weight: float = Field(0.1, ge=0)
    sigreg_width: int = Field(128, gt=0)
    sigreg_directions: int = Field(64, gt=0)
    steps_ahead: list[int] = [1]
    every_layer: bool = False

    @field_validator("steps_ahead", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fits(self) -> "NextEmbeddingSettings":
        if not self.steps_ahead or min(self.steps_ahead) < 1 or len(set(self.steps_ahead)) < len(self.steps_ahead):
            raise ValueError(f"steps_ahead {self.steps_ahead} should be different whole numbers from 1")
        if not self.shift and self.steps_ahead != [1]:
            raise ValueError("shift=false compares each position with itself; leave steps_ahead at 1")
        if self.target == "hidden" and self.target_layer == 0:
            raise ValueError("target=hidden needs target_layer other than 0 (0 is the latents: target=latents)")
        return self

    def build(self, backbone: Backbone) -> "NextEmbedding":
        """The objective on a backbone. Raises ConfigError if that has too few layers or latents for these settings."""
        num_layers, size = backbone.config.num_hidden_layers, getattr(backbone.config, "image_size", None)
        if not -num_layers - 1 <= self.target_layer <= num_layers:
            raise ConfigError(f"objective.target_layer {self.target_layer}: the model has layers 0 to {num_layers}")
        if self.target == "hidden" and self.target_layer == -num_layers - 1:
            raise ConfigError("objective.target_layer: layer 0 is the latents: target=latents")
        num_latents = getattr(backbone, "num_latents", None)  # a user's own backbone may not tell
        longest, length = max(self.steps_ahead), num_latents(size, size) if num_latents and size else math.inf
        if longest >= length:
            raise ConfigError(f"objective.steps_ahead {longest}: an image has only {length} latents")
        self._check_boundary(backbone)
        return NextEmbedding(self, backbone)

    def _check_boundary(self, backbone: Any) -> None:
        """What needs to know tables, densities or modalities needs a backbone that has them."""
        kinds = getattr(backbone, "kind_names", None)
        if self.distance == "vocabulary" and not hasattr(backbone, "codes"):
            raise ConfigError("objective.distance=vocabulary needs a model with a table of tokens: model.kind=omni")
        if self.distance == "likelihood" and getattr(backbone, "density_head", None) is None:
            raise ConfigError("objective.distance=likelihood needs model.density=von_mises_fisher or mixture")
        if getattr(backbone, "density_head", None) is not None:
            if self.distance not in ("likelihood", "vocabulary"):
                raise ConfigError("model.density is trained by objective.distance=likelihood or vocabulary")
            backbone.config.token_softmax = self.distance == "vocabulary"
        if self.weights and kinds is None:
            raise ConfigError("objective.weights needs a model of several modalities: model.kind=omni")
        for name in self.weights:
            if name not in (kinds or ()):
                raise ConfigError(unknown("objective.weights:", name, kinds or ()))
        packed = kinds is not None
        if packed and (self.steps_ahead != [1] or not self.shift or self.distance in ("info_nce", "sigreg")
                       or self.target != "latents" or self.input_mask_rate > 0):  # fmt: skip
            raise ConfigError(
                "objective: packed documents are trained with steps_ahead=1, shift, target=latents, input_mask_rate=0 "
                "and a distance other than info_nce and sigreg"
            )


class Boundary(NamedTuple):
    """What a backbone of packed documents says about them.

    names: of kinds 1, 2, ...: "begin", then the modalities. codes: (table [V, D], rows [B, T], log_scale []), see
    `models.omni`. density: hidden states to densities. weight [B, T]: of each position's distance.
    """

    names: Sequence[str]
    codes: Any
    density: Any
    weight: Tensor | None


class NextEmbedding(Objective):
    """The objective of `NextEmbeddingSettings` on a backbone of width D."""

    def __init__(self, settings: NextEmbeddingSettings, backbone: Backbone):
        super().__init__()
        self.settings = settings
        self.steps = sorted(settings.steps_ahead) if settings.shift else [0]
        # Nobody needs the hidden state of the last latent: it predicts nothing, and no other latent attends to it.
        self.skip_last = settings.causal and settings.shift and settings.target != "hidden"
        self.stop_gradient = settings.stop_gradient and settings.distance != "sigreg"
        width = backbone.config.hidden_size
        self.heads = nn.ModuleDict({str(k): nn.Linear(width, width) for k in self.steps[1:]})
        self.projector = None
        if settings.distance == "sigreg":
            hidden = 2 * settings.sigreg_width
            self.projector = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, settings.sigreg_width)
            )
        self.teacher: Any = None
        if settings.target == "teacher":
            self.teacher = copy.deepcopy(backbone)
            for p in self.teacher.parameters():
                p.requires_grad_(False)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Adds input_mask [B, T]: each patch hidden with probability `input_mask_rate`; the begin token never."""
        if self.settings.input_mask_rate > 0:
            shape = batch["latent_mask"].shape
            mask = torch.rand(shape, generator=generator) < self.settings.input_mask_rate
            mask[:, 0] = False
            batch["input_mask"] = mask
        return batch

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of (position, step) pairs that are compared; layers do not count."""
        mask = batch["latent_mask"]
        return torch.stack([mask[:, k:].sum() for k in self.steps]).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents = backbone.embed(batch)
        hidden = backbone.encode(
            self.seen(latents, batch),
            attention="causal" if self.settings.causal else "full",
            output_layers=self.settings.every_layer or self.settings.target == "hidden",
        )
        target = self.target(backbone, latents, hidden, batch)
        if self.stop_gradient:
            target = target.detach()
        mask = batch.get("latent_mask")
        boundary = self.boundary(backbone, batch)
        loss = self.loss(hidden.last, target, mask, boundary)
        if self.settings.every_layer:
            before = [self.loss(layer, target, mask, boundary) for layer in hidden.layers[1:-1]]
            loss = loss + torch.stack(before).mean() if before else loss
        metrics = None
        if self.diagnose:
            with torch.no_grad():
                h, z = hidden.last.detach(), latents.z.detach()
                pred = h if boundary is None or boundary.density is None else boundary.density(h).mean()
                if boundary is None:
                    metrics = diagnose(z, h, pred, target.detach())
                else:
                    metrics = diagnose_documents(z, h, pred, batch, boundary)
        return ObjectiveOutput(
            loss_sum=loss,
            num_targets=self.count_targets(batch),
            features=hidden.last[:, 1:].detach().mean(dim=1),
            metrics=metrics,
        )

    def seen(self, latents: Latents, batch: Batch) -> Latents:
        """What the autoregressor sees: hidden patches are zero; without the last latent where it is of no use."""
        z = latents.z
        mask = batch.get("input_mask")
        if mask is not None:
            z = z.masked_fill(mask[..., None], 0.0)
        end = z.shape[1] - 1 if self.skip_last and z.shape[1] > 2 else z.shape[1]  # one patch at least, for features
        return latents._replace(z=z).until(end)

    def boundary(self, backbone: Any, batch: Batch) -> Boundary | None:
        """What packed documents say about each position; None for images."""
        if "kinds" not in batch:
            return None
        weight = None
        if self.settings.weights:
            own = [1.0, *(self.settings.weights.get(name, 1.0) for name in backbone.kind_names)]  # padding comes first
            kinds: Tensor = cast(Any, batch)["kinds"]
            weight = torch.tensor(own, device=kinds.device)[kinds]
        density = (
            getattr(backbone, "density_head", None) if self.settings.distance in ("likelihood", "vocabulary") else None
        )
        return Boundary(backbone.kind_names, backbone.codes(batch), density, weight)

    def target(self, backbone: Backbone, latents: Latents, hidden: Hidden, batch: Batch) -> Tensor:
        """What is predicted, [B, T, D]."""
        if self.settings.target == "latents":
            return latents.z
        if self.settings.target == "hidden":
            return hidden.layers[self.settings.target_layer]
        with torch.no_grad():
            self.teacher.eval()  # the trainer sets the whole objective to training mode
            z = self.teacher.embed(batch)
            if self.settings.target_layer == 0:
                return z.z
            return self.teacher.encode(z, output_layers=True).layers[self.settings.target_layer]

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor | None, boundary: Boundary | None = None) -> Tensor:
        """Summed distance over positions and steps, []."""
        total = hidden.new_zeros((), dtype=torch.float32)
        if boundary is not None:
            total = total + 0.0 * boundary.codes.log_scale  # ranks have to reach every parameter in every step
        project = self.projector or nn.Identity()
        target = project(target)
        if self.projector is not None:
            directions = torch.randn(target.shape[-1], self.settings.sigreg_directions, device=target.device)
            gaussian = losses.sigreg(target, directions)[:, None].expand(target.shape[:2])
            total = self.settings.sigreg_weight * losses.masked_sum(gaussian, mask)[0]
        for k in self.steps:
            head = self.heads[str(k)] if str(k) in self.heads else nn.Identity()
            pred, shifted = losses.shifted(project(head(hidden)), target, k)
            valid = None if mask is None else mask[:, k:]
            distance = self.distance(pred, shifted, valid, boundary)
            if boundary is not None and boundary.weight is not None:
                distance = distance * boundary.weight[:, k:]
            total = total + losses.masked_sum(distance, valid)[0]
        return total

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None, boundary: Boundary | None = None) -> Tensor:
        """Distance at each position, [B, T, D] -> [B, T]."""
        match self.settings.distance:
            case "cosine":
                return losses.negative_cosine(pred, target)
            case "vocabulary":
                assert boundary is not None
                table, codes, log_scale = boundary.codes
                codes = codes[:, 1:]
                wanted = torch.ones_like(codes, dtype=torch.bool) if mask is None else mask
                chosen = wanted & (codes >= 0)
                others = wanted & ~chosen  # a density of many directions is not worth having where it is not asked for
                if boundary.density is None:
                    found = losses.negative_cosine(pred[others], target[others])
                else:
                    found = -boundary.density(pred[others]).log_prob(target[others])
                table = table.detach() if self.settings.stop_gradient_table else table
                scores = losses.vocabulary_scores(pred[chosen], table, log_scale)
                distances = found.new_zeros(codes.shape).masked_scatter(others, found)
                return distances.masked_scatter(chosen, losses.cross_entropy(scores, codes[chosen]))
            case "likelihood":
                assert boundary is not None and boundary.density is not None
                return -boundary.density(pred).log_prob(target)
            case "smooth_l1":
                return losses.smooth_l1(pred, target)
            case "info_nce":
                return losses.info_nce(pred, target, mask, self.settings.temperature)
            case _:
                return losses.mse(pred, target)

    @torch.no_grad()
    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves the teacher towards the backbone."""
        if self.teacher is not None:
            pairs = zip(self.teacher.parameters(), backbone.parameters(), strict=True)
            mine, theirs = (list(x) for x in zip(*pairs, strict=True))
            torch._foreach_lerp_(mine, theirs, 1 - self.settings.teacher_decay)


def diagnose_documents(z: Tensor, h: Tensor, pred: Tensor, batch: Batch, boundary: Boundary) -> dict[str, Any]:
    """`diagnose` over packed documents: targets whose current latent belongs to the same segment. By modality, too: how
    near predictions are, "cos_next/NAME"; how long latents are, "length/NAME"; how often the nearest row of the table
    is the right one, "top1/NAME"."""
    kinds, mask, documents = (cast(Any, batch)[name] for name in ("kinds", "latent_mask", "document_ids"))
    pred, target = losses.shifted(pred, z)
    to_next = -losses.negative_cosine(pred, target)
    to_current = -losses.negative_cosine(pred, z[:, :-1])
    valid = mask[:, 1:]
    inside = valid & (kinds[:, 1:] == kinds[:, :-1]) & (documents[:, 1:] == documents[:, :-1])
    found: dict[str, Any] = {}
    if bool(inside.any()):
        between = -losses.negative_cosine(z[:, :-1], target)
        found = {
            "cos_next": to_next[inside].mean(),
            "cos_current": to_current[inside].mean(),
            "cos_gap": (to_next - to_current)[inside].mean(),
            "copy_win": (to_current > to_next)[inside].float().mean(),
            "cos_neighbours": between[inside].mean(),
        }
        for name, x in (("latent", z[:, 1:][inside]), ("hidden", h[:, : valid.shape[1]][inside])):
            rows = x[:: max(1, len(x) // MAX_ROWS)][:MAX_ROWS]
            found |= {f"{name}_std": spread(rows), f"{name}_rank": effective_rank(rows)}
    for number, name in enumerate(boundary.names, 1):
        own = valid & (kinds[:, 1:] == number)
        found[f"cos_next/{name}"] = (to_next[own].sum(), own.sum())
        found[f"length/{name}"] = (torch.linalg.vector_norm(target[own].float(), dim=-1).sum(), own.sum())
        coded = own & (boundary.codes.codes[:, 1:] >= 0)
        if bool(coded.any()):
            scores = losses.vocabulary_scores(pred[coded], boundary.codes.table, boundary.codes.log_scale)
            found[f"top1/{name}"] = ((scores.argmax(-1) == boundary.codes.codes[:, 1:][coded]).sum(), coded.sum())
    return found
