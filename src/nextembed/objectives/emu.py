"""Emu's two-headed loss: the next text token by classification, the next visual latent by regression."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core import distributed
from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.randomness import drawn_by, seeds_within
from ..core.types import IGNORE_LABEL, Backbone, Batch
from ..errors import ConfigError
from ..nn.diagnostics import diagnose, lasting_warnings, verdict
from ..nn.latent_flow import LatentFlow
from ..nn.losses import regression_distance, token_cross_entropy
from ..nn.read_noise import noised

CHUNK = 2048  # positions whose logits are in memory at a time


@runtime_checkable
class TwoHeaded(Protocol):
    """A language model with a second head, for image latents."""

    @property
    def draws_latents(self) -> bool: ...
    def image_latents(self, pixel_values: Tensor) -> Tensor: ...
    def get_input_embeddings(self) -> nn.Embedding: ...
    def text_logits(self, hidden: Tensor) -> Tensor: ...
    def regress_by_flow(self) -> None: ...


@OBJECTIVES.register("emu")
class EmuSettings(ObjectiveSettings):
    """Next token and next latent of interleaved documents.

    Attributes:
        text_weight: weight of the text term, a mean over its own targets; 0 leaves it out.
        regression_weight: weight of the regression term, a mean over its own targets; 0 leaves it out.
        regression: head of the latents: "linear", Emu's matrix, or "flow", which learns the distribution of the next
            latent and samples it (flow matching; `distance` is then not used). A flow replaces the matrix of a
            pretrained model and is newly initialised.
        distance: between predicted and true latents: "mse" (Emu), "cosine" (as NEPA), "smooth_l1".
        context_drop_rate: share of documents whose last image does not see what precedes it, except the begin token; it
            is then predicted as after an empty prompt, which guidance needs.
        latent_noise: noise on image latents that are read, not on those that are predicted: its largest standard
            deviation, in units of a latent's root mean square; see `nn.read_noise`. It makes a model robust to its own
            samples.
        detach_targets: False lets gradient into the true latents too, which invites collapse; watch latent_std and
            latent_rank. Source: Emu (arXiv 2307.05222), equation 2; the release can only train text.
    """

    task: ClassVar[str] = "multimodal"

    text_weight: float = Field(1.0, ge=0, le=1e6)
    regression_weight: float = Field(1.0, ge=0, le=1e6)
    regression: Literal["linear", "flow"] = "linear"
    distance: Literal["mse", "cosine", "smooth_l1"] = "mse"
    detach_targets: bool = True
    context_drop_rate: float = Field(0.0, ge=0, lt=1)
    latent_noise: float = Field(0.0, ge=0, le=10)

    @model_validator(mode="after")
    def _distance_is_used(self) -> "EmuSettings":
        if self.regression == "flow" and self.distance != "mse":
            raise ValueError(f"distance={self.distance} has no effect with regression=flow, which has its own loss")
        return self

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Draws which documents lose their context.

        Args:
            sample: an encoded document.
            generator: seeded for this sample.

        Returns:
            context_dropped bool [T]: with probability `context_drop_rate`, all before the `[IMG]` of the last image.
        """
        if self.context_drop_rate == 0:
            return {}
        dropped = bool(torch.rand((), generator=generator) < self.context_drop_rate)
        mask = sample["regression_mask"]  # latents of an image and its [/IMG], without the [IMG]
        starts = (mask[1:] & ~mask[:-1]).nonzero()[:, 0]
        last = int(starts[-1]) if len(starts) else 0
        return {"context_dropped": (torch.arange(len(mask)) < last) & dropped}

    def warnings(self, history: History) -> list[str]:
        return lasting_warnings(history)

    def verdict(self, history: History) -> Verdict:
        """What a run did, by its image latents (`nn.diagnostics`); without images, by the text loss.

        Args:
            history: logged lines, oldest first.

        Returns:
            A word and a sentence.
        """
        if any("cos_next" in line for line in history):
            return verdict(history)
        lines = [line for line in history if "text_loss" in line]
        if not lines:
            return Verdict("undecided", "No diagnostics were logged.")
        first, last = lines[0]["text_loss"], lines[-1]["text_loss"]
        figures = f"{last:.3f} nats a token, after {first:.3f} at step {lines[0].get('step', 0):g}"
        return Verdict("language model", f"Trained on text only, so there are no image latents to judge: {figures}.")

    def build(self, backbone: Backbone) -> "EmuObjective":
        """Makes the objective.

        Args:
            backbone: an Emu model.

        Returns:
            The module.

        Raises:
            ConfigError: both weights are 0, the model lacks one of the two heads, or the regression is linear and the
                model's head a flow.
        """
        if self.text_weight == 0 and self.regression_weight == 0:
            raise ConfigError("objective: text_weight and regression_weight are both 0, so there is no loss")
        if not isinstance(backbone, TwoHeaded):
            raise ConfigError("objective emu needs a model with a text and a regression head, like model.kind=emu")
        if self.regression == "linear" and self.regression_weight > 0 and backbone.draws_latents:
            raise ConfigError("objective: the model's regression head is a flow; set objective.regression=flow")
        kind = str(cast(Any, backbone).config.text_config._attn_implementation)
        if self.context_drop_rate > 0 and ("flash" in kind or "flex" in kind):
            raise ConfigError(f"objective.context_drop_rate needs a mask, which attention {kind} does not read: "
                              "train.attn_implementation=sdpa")  # fmt: skip
        if self.regression == "flow":
            backbone.regress_by_flow()
        return EmuObjective(self)


class EmuObjective(Objective):
    """loss_sum and num_targets are [2]: text, regression. metrics: text_loss, text_accuracy, regression_loss, and the
    figures of `nn.diagnostics.diagnose` for the latents, with `[IMG]` before the first."""

    settings: EmuSettings

    def __init__(self, settings: EmuSettings):
        super().__init__(settings)

    def count_targets(self, batch: Batch) -> Tensor:
        return torch.stack([(batch["labels"][:, 1:] != IGNORE_LABEL).sum(), batch["regression_mask"][:, 1:].sum()])

    def forward(self, backbone: Any, batch: Batch) -> ObjectiveOutput:
        settings = self.settings
        pixels = batch["pixel_values"]
        idle = len(pixels) == 0 and self.training and distributed.world_size() > 1
        if idle:  # every rank has to use every parameter in every step
            pixels = pixels.new_zeros(1, *pixels.shape[1:])
        latents = backbone.image_latents(pixels) if len(pixels) else None
        embeds = backbone.model.embed(batch["input_ids"], None if idle else latents)
        of_images = (batch["input_ids"] == backbone.config.image_token_id) & (batch["document_ids"] > 0)
        read = noised(embeds, of_images, settings.latent_noise if self.training else 0.0, batch["document_ids"])
        documents, positions = apart(batch, backbone.config.bos_token_id is not None)
        hidden = backbone.model(inputs_embeds=read, document_ids=documents, position_ids=positions).last_hidden_state
        # --8<-- [start:losses]
        text = batch["labels"][:, 1:] != IGNORE_LABEL
        text_sum, text_count, right = self.text_term(backbone, hidden[:, :-1][text], batch["labels"][:, 1:][text])
        mask = batch["regression_mask"][:, 1:]
        target = embeds[:, 1:][mask]
        if settings.detach_targets:
            target = target.detach()
        regression_sum, regression_count = self.regression_term(backbone, hidden[:, :-1], target, mask), mask.sum()
        loss = torch.stack([settings.text_weight * text_sum, settings.regression_weight * regression_sum])
        # --8<-- [end:losses]
        if idle:
            assert latents is not None
            loss = loss + 0.0 * latents.sum()
        output = ObjectiveOutput(loss_sum=loss, num_targets=torch.stack([text_count, regression_count]), metrics={})
        if self.diagnose:
            output.metrics = {
                "text_loss": (text_sum.detach(), text_count),
                "text_accuracy": (right, text_count),
                "regression_loss": (regression_sum.detach(), regression_count),
            }
            output.metrics |= latent_diagnostics(backbone, batch, embeds, hidden)
        return output

    def regression_term(self, backbone: Any, hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Summed loss of targets [N, D], predicted from hidden states [B, T, D] at mask [B, T]."""
        head = backbone.regression_head
        if isinstance(head, LatentFlow):
            with drawn_by(
                seeds_within(mask.nonzero()[:, 0].contiguous())
            ):  # noise depends on the target only, not on the batch
                return head.loss(hidden[mask], target).sum()
        return regression_distance(head(hidden[mask]), target, self.settings.distance).sum()

    @torch.no_grad()
    def prepare(self, backbone: Any, window: Sequence[Batch]) -> bool:
        """Measures, on all ranks, the latents that a new flow will learn."""
        head = backbone.regression_head
        if not isinstance(head, LatentFlow) or bool(head.measured):
            return True
        was_training = backbone.training
        backbone.eval()  # random operations of training would make this depend on how the batch is divided
        found = [backbone.image_latents(batch["pixel_values"]) for batch in window if len(batch["pixel_values"])]
        backbone.train(was_training)
        return head.measure(torch.cat(found) if found else head.center[None, None, :][:0])

    def text_term(self, backbone: Any, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum, count and number of right tokens. Logits are recomputed in the backward pass, a chunk at a time:
        otherwise they would be the largest tensor of all."""

        def chunk(part: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            logits = backbone.text_logits(part)
            return token_cross_entropy(logits, wanted)[0], (logits.argmax(-1) == wanted).sum()

        parts = [
            checkpoint(chunk, a, b, use_reentrant=False) if len(tokens) > CHUNK else chunk(a, b)
            for a, b in zip(hidden.split(CHUNK), tokens.split(CHUNK))
        ]
        total, right = (torch.stack(list(values)).sum() for values in zip(*parts))
        return total, torch.tensor(len(tokens), device=tokens.device), right.detach()


def apart(batch: Batch, keep_first: bool) -> tuple[Tensor, Tensor]:
    """document_ids and position_ids [B, T] in which a dropped context is a document of its own, and the rest continues
    from the begin token, if there is one (keep_first), as in `empty_prompt`."""
    documents, positions = batch["document_ids"], batch["position_ids"]
    dropped = cast(Mapping[str, Tensor], batch).get("context_dropped")
    if dropped is None:
        return documents, positions
    if keep_first:
        dropped = dropped & (positions > 0)
    total = dropped.long().cumsum(1)
    before = torch.where(positions == 0, total - dropped.long(), 0).cummax(1).values  # of the documents before
    documents = torch.where(dropped, documents + documents.max(), documents)
    return documents, torch.where(dropped, positions, positions - (total - before))


@torch.no_grad()
def latent_diagnostics(backbone: Any, batch: Batch, embeds: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """`diagnose` over the images of a batch: each is `[IMG]` and its N latents."""
    config = backbone.config
    num = config.num_image_latents
    starts = (batch["input_ids"] == config.image_start_token_id).nonzero()
    starts = starts[starts[:, 1] + num < batch["input_ids"].shape[1]]
    if num < 2 or len(starts) == 0:
        return {}
    rows, columns = starts[:, :1], starts[:, 1:] + torch.arange(num + 1, device=starts.device)
    whole = (batch["input_ids"][rows, columns[:, 1:]] == config.image_token_id).all(dim=1)  # not a bare [IMG] in text
    rows, columns = rows[whole], columns[whole]
    if len(rows) == 0:
        return {}
    z, h = embeds[rows, columns], hidden[rows, columns]  # [images, N + 1, D]
    return diagnose(z, h, backbone.regression_head(h), z)
