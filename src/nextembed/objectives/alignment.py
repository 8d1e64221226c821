"""Image latents that spell the text after the image, before a language model has to read them."""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..core.objective import OBJECTIVES, Accumulation, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.types import IGNORE_LABEL, Backbone, Batch
from ..errors import ConfigError
from .emu import TwoHeaded


@OBJECTIVES.register("alignment")
class AlignmentSettings(ObjectiveSettings):
    """Latent i of an image learns to be the token i of the text that follows it: a softmax over its cosines with the
    embeddings of the batch's tokens.

    Encoder and connector of an Emu train alone, without the forward pass of the language model, which would take most
    of the time. The language model then has to copy what it reads. For captions of a few words; of longer ones the
    beginning is spelled, one token by each latent.

    Attributes:
        temperature: of the softmax.

    Source:
        ours. Frozen (arXiv 2106.13884) and LLaVA's first stage (arXiv 2304.08485) train the same parts with the same
        aim, through the language model.
    """

    task: ClassVar[str] = "multimodal"
    trained_parts: ClassVar[tuple[str, ...]] = ("model.visual", "model.connector")

    temperature: float = Field(0.05, gt=0, le=10)

    @property
    def accumulation(self) -> Accumulation:
        return "per micro batch"

    def build(self, backbone: Backbone) -> "Alignment":
        """Makes the objective.

        Args:
            backbone: an Emu model.

        Returns:
            The module.

        Raises:
            ConfigError: the model has no image latents among its tokens.
        """
        if not isinstance(backbone, TwoHeaded):
            raise ConfigError("objective alignment needs a model of images and text, like model.kind=emu")
        return Alignment(self, backbone.config.image_token_id, backbone.config.num_image_latents)

    def usage(self, folder: str) -> str:
        return f"nextembed train emu_smol model.pretrained={folder}/model    (or your own recipe with objective emu)"

    def verdict(self, history: History) -> Verdict:
        """How many tokens are spelled.

        Args:
            history: logged lines, oldest first.

        Returns:
            A word and a sentence.
        """
        lines = [line for line in history if "alignment_accuracy" in line]
        if not lines:
            return Verdict("undecided", "No diagnostics were logged.")
        first, last = lines[0], lines[-1]
        return Verdict(
            "readout",
            f"The latents of an image spell {last['alignment_accuracy']:.1%} of the tokens after it, after "
            f"{first['alignment_accuracy']:.1%} at step {first.get('step', 0):g}.",
        )


class Alignment(Objective):
    """metrics: alignment_loss (nats per token), alignment_accuracy (share of tokens that are the nearest of all)."""

    settings: AlignmentSettings

    def __init__(self, settings: AlignmentSettings, image_token_id: int, num_latents: int):
        super().__init__(settings)
        self.image_token_id, self.num_latents = image_token_id, num_latents

    def count_targets(self, batch: Batch) -> Tensor:
        return (self.spelled(batch) != IGNORE_LABEL).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        model, pixels, wanted = cast(TwoHeaded, backbone), batch["pixel_values"], self.spelled(batch)
        if len(pixels) == 0:  # every parameter has to be used in every step
            pixels, wanted = (
                pixels.new_zeros(1, *pixels.shape[1:]),
                wanted.new_full((1, self.num_latents), IGNORE_LABEL),
            )
        latents = model.image_latents(pixels)
        # --8<-- [start:loss]
        table = model.get_input_embeddings().weight.detach()  # [V, D]
        mask = wanted != IGNORE_LABEL  # [I, N]
        tokens, index = wanted[mask].unique(return_inverse=True)
        cosines = normalized(latents[mask]) @ normalized(table[tokens]).T
        loss = (
            F.cross_entropy(cosines / self.settings.temperature, index, reduction="sum")
            if len(tokens)
            else 0.0 * latents.sum()
        )
        # --8<-- [end:loss]
        output = ObjectiveOutput(loss_sum=loss, num_targets=mask.sum(), metrics={})
        if self.diagnose:
            with torch.no_grad():
                nearest = (normalized(latents[mask]) @ normalized(table).T).argmax(-1)
            output.metrics = {
                "alignment_loss": (loss.detach(), mask.sum()),
                "alignment_accuracy": ((nearest == wanted[mask]).sum(), mask.sum()),
            }
        return output

    def spelled(self, batch: Batch) -> Tensor:
        """Tokens [I, N] that the latents of each image spell, IGNORE_LABEL where there is none: those after its
        `[/IMG]`, up to the first that is no target, in the same document."""
        documents, labels = batch["document_ids"], batch["labels"]
        images = (batch["input_ids"] == self.image_token_id) & (documents > 0)
        rows, columns = (images & ~F.pad(images, (1, 0))[:, :-1]).nonzero(as_tuple=True)
        at = columns[:, None] + self.num_latents + 1 + torch.arange(self.num_latents, device=rows.device)
        inside = at < labels.shape[1]
        rows, at = rows[:, None], at.clamp(max=labels.shape[1] - 1)
        inside &= documents[rows, at] == documents[rows, columns[:, None]]
        found = torch.where(inside, labels[rows, at], IGNORE_LABEL)
        return torch.where((found != IGNORE_LABEL).long().cumprod(1).bool(), found, IGNORE_LABEL)


def normalized(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
