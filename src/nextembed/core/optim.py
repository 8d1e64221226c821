"""Settings of the optimizer."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..errors import ConfigError
from .config import Config

Beta = Annotated[float, Field(ge=0, le=1 - 1e-9)]  # 1 would divide by 0


class OptimConfig(Config):
    """The optimizer and its schedule.

    Attributes:
        kind: "adamw"; "adamw_8bit": its averages in 8 bits, a quarter of their memory (bitsandbytes; CPU and CUDA, not
            with train.fsdp); "muon": Muon (momentum 0.95, steps as large as AdamW's) for the weights of linear layers
            inside layers and blocks, AdamW for all else: embeddings, heads, norms, biases. betas and eps apply to
            AdamW.
        learning_rate: peak learning rate, for train.batch_size samples per step. For twice the batch use up to twice
            the rate.
        betas: decay rates of AdamW's averages of gradients and of their squares.
        eps: AdamW's term against a division by zero.
        warmup_steps: length of the linear warm-up in optimizer steps; at most one of warmup_steps, warmup_epochs and
            warmup_rate.
        warmup_epochs: the same in passes over the data.
        warmup_rate: the same as a share of the run.
        schedule: "cosine" falls to min_lr_rate x peak at the last step, "constant" stays at the peak.
        min_lr_rate: learning rate at the end of "cosine", as a share of the peak.
        weight_decay: weight decay of matrices and of the first token; norms, biases and LayerScale (parameters with one
            axis) do not decay.
        max_grad_norm: gradients are clipped to this norm; null: no clipping.
        layer_decay: each layer's learning rate is this times that of the layer above it.
        layer_decay_end: the layer decay rises (half a cosine) to this at the last step; null stays at layer_decay.
        layer_warmup: the warm-up of a layer that learns at x times the top's rate takes (1 - x) of the warm-up steps,
            so lower layers wait longer and the head starts at once (NEPA's released fine-tuning).
        embed_lr_rate: learning rate of the input embedding (patches and first token), relative to the rest.
        part_lr_rates: learning rates of parts of the model, relative to the rest, by their names or dotted parts of
            names: {visual: 0.4, language_model: 0.3}.
    """

    kind: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0, le=100)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, ge=1e-30, le=1)  # smaller is 0 in float32
    weight_decay: float = Field(0.05, ge=0, le=100)
    warmup_steps: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0, le=1e9)
    warmup_rate: float | None = Field(None, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_rate: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float | None = Field(1.0, gt=0, le=1e9)
    layer_decay: float = Field(1.0, ge=0.01, le=1)
    layer_decay_end: float | None = Field(None, ge=0.01, le=1)
    layer_warmup: bool = False
    embed_lr_rate: float = Field(1.0, ge=0, le=1000)
    part_lr_rates: dict[str, Annotated[float, Field(ge=0, le=1000)]] = {}

    @model_validator(mode="after")
    def _one_warmup(self) -> "OptimConfig":
        ways = {"warmup_steps": self.warmup_steps, "warmup_epochs": self.warmup_epochs, "warmup_rate": self.warmup_rate}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}, not {len(given)}")
        return self

    def num_warmup_steps(self, max_steps: int, steps_per_epoch: float | None) -> int:
        """Length of the warm-up, from `warmup_steps`, `warmup_rate` or `warmup_epochs`.

        Args:
            max_steps: optimizer steps of the run.
            steps_per_epoch: needed for `warmup_epochs` only; None otherwise.

        Returns:
            Optimizer steps.

        Raises:
            ConfigError: `warmup_epochs` is set, but the size of the data is not known.
        """
        if self.warmup_epochs is not None:
            if steps_per_epoch is None:
                raise ConfigError("optim.warmup_epochs needs data of known size; set optim.warmup_steps instead")
            return round(self.warmup_epochs * steps_per_epoch)
        if self.warmup_rate is not None:
            return round(self.warmup_rate * max_steps)
        return self.warmup_steps or 0
