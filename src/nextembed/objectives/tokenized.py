"""Models of the codes of a trained tokenizer, which generate images: LlamaGen, one code at a time; see `scales` for
VAR.

Shapes: B images, P patches (the tokenizer's cells), L codes of an image, K codes of the codebook, D latent width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ..core.objective import (
    FOLDER,
    OBJECTIVES,
    Folder,
    History,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
    SampleSettings,
    Verdict,
)
from ..core.optim import OptimConfig
from ..core.types import Attention, AttentionMode, Backbone, Batch, CachedBackbone, Hidden, Latents
from ..errors import ConfigError
from ..nn.ema import Teacher, decay_at, follow
from ..nn.positions import patch_coordinates
from ..nn.sampling import ClassTable, draw_tokens, drop_class, guided, told_labels, with_and_without
from ..nn.tokenizer import ImageTokenizer, TokenizerShape
from .pixels import patch_shape_of
from .tokenizer import check_tokenizer, load_tokenizer
from .tokens import classified, token_verdict

FROZEN = "tokenizer"  # the part that is not trained


class TokenizedSettings(ObjectiveSettings):
    """Settings that `llamagen` and `var` share.

    Attributes:
        tokenizer: a finished run of objective tokenizer, or its folder; it is kept with this run.
        num_classes: number of classes that samples can be conditioned on; 0 trains without classes.
        ema_decay: decay of the averaged weights of head, table and classes, with which images are sampled; null: no
            average, as in both papers. Set train.ema_decay to the same for the backbone.
        class_drop_rate: share of samples trained without their class, which guidance needs.
        tokenizer_shape: sizes of an untrained tokenizer, in place of a path; to try things out.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)

    tokenizer: str | None = None
    num_classes: int = Field(0, ge=0, le=10**6)
    class_drop_rate: float = Field(0.1, ge=0, le=1)
    ema_decay: float | None = Field(None, ge=0, lt=1)
    tokenizer_shape: TokenizerShape | None = None

    def draw(self, sample: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """class_dropped []."""
        return drop_class(self.class_drop_rate, generator)

    def warnings(self, history: History) -> list[str]:
        if self.tokenizer is None:
            return [
                "tokenizer: it is untrained, so its codes carry little information; name the run of a trained "
                "one with objective.tokenizer"
            ]
        return []

    def verdict(self, history: History) -> Verdict:
        """By the share of codes that are right, compared with always predicting the most frequent one."""
        return token_verdict(history)

    def usage(self, folder: str) -> str:
        told = " --class 0 --guidance 2" if self.num_classes else ""
        return f"nextembed sample {folder}{told} -o sheet.png"

    def opened(self, backbone: Backbone) -> ImageTokenizer:
        """The tokenizer, frozen. Raises ConfigError if there is none, or if it was trained for images of another
        size."""
        patch_shape_of(backbone, self.kind)
        if not isinstance(backbone, CachedBackbone):
            raise ConfigError(
                f"objective {self.kind} needs a model that generates one latent after the other: vit_nepa"
            )
        if self.tokenizer_shape is not None:
            tokenizer = ImageTokenizer(self.tokenizer_shape).requires_grad_(False).eval()
        elif self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer)
        else:
            raise ConfigError("objective.tokenizer: name a finished run of vq_demo or msvq_demo, e.g. "
                              "objective.tokenizer=runs/vq_demo")  # fmt: skip
        check_tokenizer(tokenizer.shape, backbone, self.tokenizer or "objective.tokenizer_shape")
        return tokenizer


class Tokenized(Objective):
    """A frozen tokenizer, a latent for each class, and a linear head over the codes that starts at zero.

    The latent of a patch comes from its code, not from pixels; from the model's embedding it has only what a grey image
    gives (the begin latent and the bias). Positions are the centres of cells, as in training without augmentation.
    """

    settings: TokenizedSettings
    reads_itself = True  # of codes
    generates = True

    def __init__(self, settings: TokenizedSettings, backbone: Backbone, tokenizer: ImageTokenizer):
        super().__init__(settings)
        width, self.num_classes = backbone.config.hidden_size, settings.num_classes
        self.tokenizer = tokenizer
        self.classes = ClassTable(settings.num_classes, width)
        self.head = nn.Linear(width, tokenizer.shape.num_codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.averages = settings.ema_decay is not None
        self.averaged: Teacher | None = None

    def average(self) -> None:
        """Called when all parts are there."""
        if self.averages:
            self.averaged = Teacher(
                nn.ModuleDict({name: part for name, part in self.named_children() if name != FROZEN})
            )

    def own(self) -> list[nn.Parameter]:
        """Trained parameters, in the order of their averages."""
        parts = [part for name, part in self.named_children() if name not in (FROZEN, "averaged")]
        return [parameter for part in parts for parameter in part.parameters()]

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves the averaged weights; early in a run they follow closely."""
        if self.averaged is not None and self.settings.ema_decay is not None:
            follow(list(self.averaged.parameters()), self.own(), decay_at(self.settings.ema_decay, step))

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Context in which averaged weights replace the trained ones, if there are any and they are requested."""
        if self.averaged is None or not self.draws_averaged:
            yield
            return
        own, averaged = self.own(), list(self.averaged.parameters())
        kept = [parameter.data for parameter in own]
        for parameter, value in zip(own, averaged, strict=True):
            parameter.data = value.data
        try:
            yield
        finally:
            for parameter, before in zip(own, kept, strict=True):
                parameter.data = before

    def train(self, mode: bool = True) -> "Tokenized":
        super().train(mode)
        self.tokenizer.eval()
        return self

    def start(self, backbone: Backbone, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The first latent, with the class, and the part that all other latents share: [B, 1, D] each."""
        config = backbone.config
        grey = self.head.weight.new_zeros(len(labels), config.num_channels, *config.image_shape)
        z = backbone.embed({"pixel_values": grey}).z
        return z[:, :1] + self.classes(labels)[:, None].to(z.dtype), z[:, 1:2]

    def places(self, num: int) -> Tensor:
        """Coordinates of the cells of all maps, [num, L, 2]; of the first map of one cell: no rotation."""
        maps = [patch_coordinates(*one, device=self.head.weight.device) for one in self.tokenizer.shape.maps]
        return torch.cat(maps)[None].expand(num, -1, -1)

    def folders(self, state: dict[str, Tensor]) -> dict[str, Folder]:
        """Saved in RUN/objective with the tokenizer, so that the run that trained it is no longer needed."""
        settings = self.settings.model_copy(update={"tokenizer_shape": self.tokenizer.shape})
        return {FOLDER: ({"kind": FOLDER, "settings": settings.model_dump(mode="json", serialize_as_any=True)}, state)}


@OBJECTIVES.register("llamagen")
class LlamaGenSettings(TokenizedSettings):
    """Next token: each code of a trained tokenizer from the class and the codes before it, in raster order.

        h = transformer([class, table[code of patch 1], ..., table[code of patch P - 1]], causal)
        loss = mean over t of -log softmax(head(h[t])) [code of patch t + 1]

    Source:
        LlamaGen (arXiv 2406.06525). Ours has NEPA's backbone (LayerNorm; rotary positions on two axes, as there); the
        class is added to its begin latent, which is not rotated. Features are read from the codes of an image, without
        a class, under causal attention.
    """

    attends: ClassVar[AttentionMode] = "causal"

    def build(self, backbone: Backbone) -> "LlamaGen":
        """Raises ConfigError for a tokenizer that is missing, does not fit, or has several maps."""
        tokenizer = self.opened(backbone)
        if tokenizer.shape.scales:
            sides = ", ".join(map(str, tokenizer.shape.scales))
            raise ConfigError(
                "objective llamagen needs a tokenizer with a single map, e.g. from vq_demo; "
                f"this one has maps of side {sides}"
            )
        return LlamaGen(self, backbone, tokenizer)


class LlamaGen(Tokenized):
    """The objective of `LlamaGenSettings`."""

    def __init__(self, settings: LlamaGenSettings, backbone: Backbone, tokenizer: ImageTokenizer):
        super().__init__(settings, backbone, tokenizer)
        self.table = nn.Embedding(tokenizer.shape.num_codes, backbone.config.hidden_size)
        nn.init.normal_(self.table.weight, std=0.02)
        self.average()

    def count_targets(self, batch: Batch) -> Tensor:
        return batch["latent_mask"][:, 1:].sum()

    def latents(self, backbone: Backbone, tokens: Tensor, labels: Tensor) -> Latents:
        """The class, then the codes, [B, 1 + P, D]."""
        first, common = self.start(backbone, labels)
        places = nn.functional.pad(self.places(len(tokens)), (0, 0, 1, 0))
        return Latents(torch.cat((first, common + self.table(tokens)), 1), places)

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        tokens = self.tokenizer.encode(batch["pixel_values"])
        latents = self.latents(backbone, tokens, told_labels(batch, len(tokens), tokens.device))
        hidden = backbone.encode(latents.until(tokens.shape[1]), "causal").last
        return classified(self.head(hidden), tokens, batch["latent_mask"][:, 1:], self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        tokens = self.tokenizer.encode(batch["pixel_values"])
        nothing = told_labels({}, len(tokens), tokens.device)
        return backbone.encode(self.latents(backbone, tokens, nothing), attention or "causal", output_layers)

    @torch.no_grad()
    def sample(
        self,
        backbone: Backbone,
        condition: Batch,
        settings: SampleSettings | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """One code after the other, from a cache."""
        with self.drawing():
            return self._sample(backbone, condition["labels"], settings or SampleSettings(), generator)

    def _sample(
        self, backbone: Backbone, labels: Tensor, settings: SampleSettings, generator: Generator | None
    ) -> Tensor:
        assert isinstance(backbone, CachedBackbone)
        rows = labels if settings.guidance == 1 else with_and_without(labels)
        z, common = self.start(backbone, rows)
        places = nn.functional.pad(self.places(len(rows)), (0, 0, 1, 0))
        cache, tokens = backbone.new_cache(), []
        for step in range(self.tokenizer.shape.num_tokens):
            hidden = backbone.encode_next(Latents(z, places[:, step : step + 1]), "causal", cache)
            logits = self.head(hidden.last[:, 0])
            logits = logits if settings.guidance == 1 else guided(logits, settings.guidance)
            tokens.append(draw_tokens(logits, settings, generator))
            z = common + self.table(tokens[-1]).repeat(len(rows) // len(labels), 1)[:, None]
        return self.tokenizer.decode(torch.stack(tokens, 1))
