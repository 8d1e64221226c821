"""Documents of several modalities: judged by the losses on validation documents, and by what the model says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from ..core import distributed
from ..core.objective import Objective
from ..errors import ConfigError, DataError
from ..evaluation.held_out import held_out_loss
from ..report import multimodal as sections
from ..report import page
from ..report.answers import answered
from ..report.view import RunView
from ..training.watch import Probe, Say
from .base import OpenRun, RunSettings, Task, model_part, register


@register
class Multimodal(Task):
    name: ClassVar[str] = "multimodal"
    lora: ClassVar[str] = "[q_proj, v_proj], within: language_model"

    def quick(
        self, config: RunSettings, backbone: PreTrainedModel, objective: Objective, loading: Mapping[str, Any], say: Say
    ) -> Probe | None:
        """The objective's losses and metrics on validation documents."""
        rows = config.train.micro_batch(distributed.world_size())
        try:
            return held_out_loss(config.data, rows=rows, objective=objective, **loading)
        except (ConfigError, DataError) as err:
            say(f"no validation loss during training: {err}")
            return None

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        shown = {"emu": sections.spoken, "omni": answered}.get(view.settings.model.kind)
        trained = view.settings.objective.kind in ("emu", "next_embedding")  # others train a part of a frozen model
        return [
            sections.header(view),
            page.missing(view),
            shown(run) if shown is not None and trained else "",
            page.probes(view),
            page.curves(view),
            page.warnings(view),
        ]

    def summary(self, run: OpenRun) -> list[str]:
        history = run.history()
        found = run.config.objective.verdict(history)
        return [*last_losses(history[-1] if history else {}), f"Verdict: {found.word}. {found.sentence}"]

    def usage(self, run: OpenRun, folder: str) -> str | None:
        if (run.dir / "visual_decoder").is_dir():
            return f'nextembed generate {folder} "red apple:" --target image -o apple.png'
        return model_part(run.config).usage(folder)


def last_losses(last: Mapping[str, Any]) -> list[str]:
    """Both losses at the end, in one line; of an Omni how near it comes to each modality's next latent."""
    if found := {k.partition("/")[2]: last[k] for k in last if k.startswith("cos_next/")}:
        line = "Cosine with the next latent: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        right = {k.partition("/")[2]: last[k] for k in last if k.startswith("top1/")}
        more = ", ".join(f"{name} {100 * value:.1f} %" for name, value in right.items())
        return [f"{line}." + (f" Top-1: {more}." if more else "")]
    if "text_loss" not in last:
        return []
    text = f"Text: {last['text_loss']:.3f} nats a token, {100 * last['text_accuracy']:.1f} % right"
    return [f"{text}. Latents: distance {last['regression_loss']:.4f}."]
