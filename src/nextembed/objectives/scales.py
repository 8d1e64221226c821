"""VAR: all codes of a map at once, from the coarser maps.

Shapes: B images, S maps, L codes of an image, V numbers a code, D latent width.
"""

import torch
from torch import Generator, Tensor, nn

from ..core.objective import OBJECTIVES, ObjectiveOutput, SampleSettings
from ..core.types import Attention, Backbone, Batch, Blocks, CachedBackbone, Hidden, Latents
from ..errors import ConfigError
from ..nn.sampling import draw_tokens, guided, told_labels, with_and_without
from ..nn.tokenizer import ImageTokenizer
from .tokenized import Tokenized, TokenizedSettings
from .tokens import classified


@OBJECTIVES.register("var")
class VarSettings(TokenizedSettings):
    """Next scale: the codes of each map from the class and the coarser maps, all codes of a map at once.

        x_k = linear(sum of the coarser maps' codes, at the size of map k) + level_k,   x_1 = the class
        h = transformer([x_1, ..., x_S]), in which map i sees map j iff j <= i
        loss = mean over codes of -log softmax(head(h)) [code]

    Guidance grows with the map, from none at the first: s_k = 1 + (s - 1) k / (S - 1).

    Source:
        VAR (arXiv 2404.02905). Ours has NEPA's backbone: centres of cells as rotary positions, instead of learned ones,
        and the class only in the first map, not in every norm. Features are those of what comes first and of
        the finest map, of an image without a class; that map's own codes are not read.
    """

    def build(self, backbone: Backbone) -> "Var":
        """Raises ConfigError for a tokenizer that is missing, does not fit, or has only one map."""
        tokenizer = self.opened(backbone)
        if len(tokenizer.shape.scales) < 2:
            raise ConfigError(
                "objective var needs a tokenizer with several maps, e.g. from msvq_demo; this one has a single map"
            )
        return Var(self, backbone, tokenizer)


class Var(Tokenized):
    """The objective of `VarSettings`."""

    level: Tensor  # int64 [L]: the map of each code

    def __init__(self, settings: VarSettings, backbone: Backbone, tokenizer: ImageTokenizer):
        super().__init__(settings, backbone, tokenizer)
        width = backbone.config.hidden_size
        self.enter = nn.Linear(tokenizer.shape.code_width, width)
        self.levels = nn.Embedding(len(tokenizer.shape.scales), width)
        nn.init.normal_(self.levels.weight, std=0.02)
        sizes = torch.tensor(tokenizer.quantizer.sizes)
        self.register_buffer("level", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        self.average()

    def count_targets(self, batch: Batch) -> Tensor:
        """All codes: maps have no padding."""
        num = len(batch["pixel_values"]) * self.tokenizer.shape.num_tokens
        return torch.tensor(num, device=batch["pixel_values"].device)

    def latents(self, backbone: Backbone, tokens: Tensor, labels: Tensor) -> Latents:
        """Inputs from which each code is predicted, [B, L, D]."""
        first, common = self.start(backbone, labels)
        first = first.expand(-1, self.tokenizer.quantizer.sizes[0], -1)
        z = torch.cat((first, common + self.enter(self.tokenizer.quantizer.coarser(tokens))), 1)
        return Latents(z + self.levels(self.level), self.places(len(tokens)))

    def blocks(self, num: int) -> Blocks:
        return Blocks(self.level.expand(num, -1))

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        tokens = self.tokenizer.encode(batch["pixel_values"])
        latents = self.latents(backbone, tokens, told_labels(batch, len(tokens), tokens.device))
        hidden = backbone.encode(latents, self.blocks(len(tokens))).last
        return classified(self.head(hidden), tokens, torch.ones_like(tokens, dtype=torch.bool), self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        """Of what comes first and the finest map, [B, 1 + P, D]. attention: "full" lets all maps see each other; all
        else is as in training."""
        tokens = self.tokenizer.encode(batch["pixel_values"])
        latents = self.latents(backbone, tokens, told_labels({}, len(tokens), tokens.device))
        seen: Attention = "full" if attention == "full" else self.blocks(len(tokens))
        hidden = backbone.encode(latents, seen, output_layers)
        finest = self.level == self.level[-1]
        return Hidden(self._read(hidden.last, finest), tuple(self._read(layer, finest) for layer in hidden.layers))

    def _read(self, hidden: Tensor, finest: Tensor) -> Tensor:
        return torch.cat((hidden[:, :1], hidden[:, finest]), 1)

    @torch.no_grad()
    def sample(
        self,
        backbone: Backbone,
        condition: Batch,
        settings: SampleSettings | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """One map after the other, from a cache."""
        with self.drawing():
            return self._sample(backbone, condition["labels"], settings or SampleSettings(), generator)

    def _sample(
        self, backbone: Backbone, labels: Tensor, settings: SampleSettings, generator: Generator | None
    ) -> Tensor:
        assert isinstance(backbone, CachedBackbone)
        quantizer = self.tokenizer.quantizer
        rows = labels if settings.guidance == 1 else with_and_without(labels)
        first, common = self.start(backbone, rows)
        x, cache, codes = first.expand(-1, quantizer.sizes[0], -1), backbone.new_cache(), quantizer.table()
        total = codes.new_zeros(len(labels), codes.shape[1], *quantizer.maps[-1])
        places = self.places(len(rows)).split(quantizer.sizes, 1)
        last = len(quantizer.maps) - 1
        for number in range(last + 1):
            latents = Latents(x + self.levels.weight[number], places[number])
            logits = self.head(backbone.encode_next(latents, "full", cache).last)
            if settings.guidance != 1:
                logits = guided(logits, 1 + (settings.guidance - 1) * number / last)
            tokens = draw_tokens(logits, settings, generator)
            total = total + quantizer.enlarged(codes[tokens], number)
            if number < last:
                coarser = quantizer.shrunk(total, number + 1).repeat(len(rows) // len(labels), 1, 1)
                x = common + self.enter(coarser)
        return self.tokenizer.pixels(total)
