"""Objectives that classify tokens of patches: iGPT in order or hidden at random, BEiT for masked blocks.

The tokens are ours: a k-means codebook of the patches of the user's own training images. Shapes: B images, P patches in
raster order, T = P + 1 latents (the begin latent first), K codes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.optim import OptimConfig
from ..core.types import Attention, AttentionMode, Backbone, Batch, Hidden
from ..errors import ConfigError
from ..nn.quantize import Codebook
from ..nn.readout import to_image, to_patches
from .pixels import grid_of, patch_shape_of


class TokenSettings(ObjectiveSettings):
    """Settings that these objectives share.

    Attributes:
        num_codes: number of codes of the codebook, fitted on the patches of the first step's images, on all ranks.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)

    num_codes: int = Field(128, ge=2, le=65536)

    def verdict(self, history: History) -> Verdict:
        return token_verdict(history)


def token_verdict(history: History) -> Verdict:
    """By the share of tokens that are right, compared with always predicting the most frequent one."""
    found = [line for line in history if "token_top1" in line]
    if not found:
        return Verdict("undecided", "No diagnostics were logged.")
    top1, common = found[-1]["token_top1"], found[-1]["token_chance"]
    said = (
        f"{100 * top1:.1f} % of the tokens are predicted correctly, against {100 * common:.1f} % by "
        "always predicting the most frequent one"
    )
    if top1 < common + 0.02:
        return Verdict("undecided", f"Hardly better than the most frequent token: {said}. Train longer.")
    return Verdict("learning", f"{said[0].upper()}{said[1:]}.")


class Tokens(Objective):
    """A codebook of patches, and a linear head over its codes."""

    settings: TokenSettings

    def __init__(self, settings: TokenSettings, backbone: Backbone):
        super().__init__(settings)
        self.patch_shape = patch_shape_of(backbone, settings.kind or "tokens")
        values = backbone.config.num_channels * self.patch_shape[0] * self.patch_shape[1]
        self.codebook = Codebook(settings.num_codes, values)
        self.head = nn.Linear(backbone.config.hidden_size, settings.num_codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def prepare(self, backbone: Backbone, window: Sequence[Batch]) -> bool:
        """Fits the codebook, once. Raises ConfigError for more codes than the first step has patches."""
        if not bool(self.codebook.fitted):
            patches = torch.cat([to_patches(batch["pixel_values"], self.patch_shape).flatten(0, 1) for batch in window])
            try:
                self.codebook.fit(patches)
            except ValueError as err:
                raise ConfigError(
                    f"objective.num_codes {self.settings.num_codes}: the images of the first step have {err}; set "
                    "fewer codes, or a larger train.batch_size"
                ) from None
        return True

    def tokens(self, batch: Batch) -> Tensor:
        """int64 [B, P]."""
        return self.codebook.ids(to_patches(batch["pixel_values"], self.patch_shape))

    def quantised(self, batch: Batch) -> Batch:
        """Images reconstructed from their codes, which the model reads."""
        height, width = batch["pixel_values"].shape[-2:]
        grid = (height // self.patch_shape[0], width // self.patch_shape[1])
        pixels = to_image(self.codebook.decode(self.tokens(batch)), grid, self.patch_shape)
        return cast(Batch, {**batch, "pixel_values": pixels.to(batch["pixel_values"].dtype)})


def classified(logits: Tensor, tokens: Tensor, mask: Tensor, diagnose: bool) -> ObjectiveOutput:
    """Cross-entropy of logits [B, P, K], summed over the tokens of `mask` [B, P].

    metrics: token_top1, the share that is right, and token_chance, that of the batch's most frequent token.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits.mT, tokens, reduction="none") * mask
    count, metrics = mask.sum(), None
    if diagnose:
        right = ((logits.argmax(-1) == tokens) & mask).sum()
        counts = torch.zeros(logits.shape[-1], dtype=torch.long, device=logits.device)
        common = counts.scatter_add(
            0, tokens.flatten(), mask.flatten().long()
        ).max()  # masks, so that no shape depends on values
        metrics = {"token_top1": (right, count), "token_chance": (common, count)}
    return ObjectiveOutput(loss_sum=loss.sum(), num_targets=count, metrics=metrics)


@OBJECTIVES.register("igpt")
class IgptSettings(TokenSettings):
    """Next token: the code of each patch from the codes of the patches before it, in raster order.

        h = transformer(embed(codes' pixels))           # causal: h[t] sees the codes of patches <= t
        loss = mean over t of -log softmax(head(h[t])) [code of patch t + 1]

    Source:
        iGPT (Chen et al. 2020, ICML). Ours predicts codes of patches instead of palette colours of pixels, since the
        backbone reads patches; a code enters as its pixels through the model's patch embedding, instead of a table. The
        head starts at zero and is not tied, as there. Features are those of quantised images.
    """

    attends: ClassVar[AttentionMode] = "causal"

    def build(self, backbone: Backbone) -> "Igpt":
        return Igpt(self, backbone)


class Igpt(Tokens):
    """The objective of `IgptSettings`."""

    reads_itself = True  # of its codebook's images

    def count_targets(self, batch: Batch) -> Tensor:
        return batch["latent_mask"][:, 1:].sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents = backbone.embed(self.quantised(batch))
        hidden = backbone.encode(latents.until(latents.z.shape[1] - 1), "causal").last
        return classified(self.head(hidden), self.tokens(batch), batch["latent_mask"][:, 1:], self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(self.quantised(batch)), attention, output_layers)


@OBJECTIVES.register("igpt_bert")
class IgptBertSettings(TokenSettings):
    """iGPT's other objective: the codes of patches hidden at random, from all other patches.

        h = transformer(embed(codes' pixels), 0 in the place of hidden patches; full attention)
        loss = mean over hidden patches of -log softmax(head(h)) [code of the patch]

    Attributes:
        mask_rate: probability that a patch is hidden; at least one is.

    Source:
        iGPT (Chen et al. 2020, ICML), its BERT objective. As for `IgptSettings`, ours predicts codes of patches.
    """

    mask_rate: float = Field(0.15, gt=0, lt=1)

    def build(self, backbone: Backbone) -> "IgptBert":
        return IgptBert(self, backbone)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """input_mask [T]: hidden patches."""
        chances = torch.rand(len(sample["latent_mask"]) - 1, generator=generator)
        hidden = (chances < self.mask_rate) | (chances == chances.min())
        return {"input_mask": F.pad(hidden, (1, 0))}


class IgptBert(Tokens):
    """The objective of `IgptBertSettings`."""

    reads_itself = True  # of its codebook's images

    def masked(self, batch: Batch) -> Tensor:
        return (batch["input_mask"] & batch["latent_mask"])[:, 1:]

    def count_targets(self, batch: Batch) -> Tensor:
        return self.masked(batch).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents = backbone.embed(self.quantised(batch))
        z = latents.z.masked_fill(batch["input_mask"][..., None], 0.0)
        hidden = backbone.encode(latents._replace(z=z), "full").last[:, 1:]
        return classified(self.head(hidden), self.tokens(batch), self.masked(batch), self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(self.quantised(batch)), attention or "full", output_layers)


@OBJECTIVES.register("beit")
class BeitSettings(TokenSettings):
    """Masked tokens: the codes of masked patches from the patches that are left, whole blocks at a time.

        h = transformer(embed(image), a learned vector in the place of masked patches; full attention)
        loss = mean over masked patches of -log softmax(head(h)) [code of the patch]

    Attributes:
        mask_rate: share of patches masked (75 of 196 in the paper).
        min_block: patches of a block at least (16 there). Blocks have an aspect ratio from 0.3 to 3.3, log-uniform.

    Source:
        BEiT (arXiv 2106.08254), its Algorithm 1. Ours takes a k-means codebook of patches where BEiT takes DALL-E's
        tokenizer, and cuts the last block, so that each image has the same number of masked patches.
    """

    mask_rate: float = Field(0.4, gt=0, lt=1)
    min_block: int = Field(2, ge=1, le=10**6)

    def build(self, backbone: Backbone) -> "Beit":
        return Beit(self, backbone)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """input_mask [T]: masked patches."""
        rows, columns = grid_of(sample)
        num = len(sample["latent_mask"]) - 1
        wanted = max(1, min(num - 1, round(self.mask_rate * num)))
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        while (left := wanted - int(mask.sum())) > 0:
            block = self._block(rows, columns, left, generator)
            places = (block & ~mask).flatten().nonzero()[:, 0]
            mask.view(-1)[places[:left]] = True
        return {"input_mask": F.pad(mask.flatten(), (1, num - rows * columns))}

    def _block(self, rows: int, columns: int, left: int, generator: torch.Generator) -> Tensor:
        """One block, bool [rows, columns]."""
        low = min(self.min_block, left)
        area = low + float(torch.rand((), generator=generator)) * (left - low)
        aspect = math.exp((2 * float(torch.rand((), generator=generator)) - 1) * math.log(1 / 0.3))
        high = max(1, min(rows, round(math.sqrt(area * aspect))))
        wide = max(1, min(columns, round(math.sqrt(area / aspect))))
        top = int(torch.randint(rows - high + 1, (), generator=generator))
        side = int(torch.randint(columns - wide + 1, (), generator=generator))
        block = torch.zeros(rows, columns, dtype=torch.bool)
        block[top : top + high, side : side + wide] = True
        return block


class Beit(Tokens):
    """The objective of `BeitSettings`."""

    def __init__(self, settings: BeitSettings, backbone: Backbone):
        super().__init__(settings, backbone)
        self.unknown = nn.Parameter(torch.zeros(backbone.config.hidden_size))
        nn.init.normal_(self.unknown, std=0.02)

    def masked(self, batch: Batch) -> Tensor:
        return (batch["input_mask"] & batch["latent_mask"])[:, 1:]

    def count_targets(self, batch: Batch) -> Tensor:
        return self.masked(batch).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents = backbone.embed(batch)
        z = torch.where(batch["input_mask"][..., None], self.unknown.to(latents.z.dtype), latents.z)
        hidden = backbone.encode(latents._replace(z=z), "full").last[:, 1:]
        return classified(self.head(hidden), self.tokens(batch), self.masked(batch), self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(batch), attention or "full", output_layers)
