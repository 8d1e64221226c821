"""Documents of several modalities: evaluated by losses and generated text on validation documents."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from ..core import distributed
from ..core.answers import Answers
from ..core.objective import Objective
from ..errors import ConfigError, DataError, NextEmbedError
from ..evaluation.held_out import held_out_loss
from ..report import multimodal as sections
from ..report import page
from ..report.answers import answered, written
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

    def finish(self, run: OpenRun, say: Say) -> dict[str, Any]:
        """Writes answers.json, if the model generates text."""
        if not says_text(run.config.model.kind, run.config.objective.kind):
            return {}
        say("generating text")

        def generated() -> Answers:
            found = answers_of(run)
            if found.rows:
                found.save(run.dir / "answers.json")
            return found

        try:
            answers = distributed.on_main(generated)
        except NextEmbedError as err:
            say(f"no generated text: {err}")
            return {}
        if sentence := answers.collapse():
            say(f"warning: same answers: {sentence}")
        return {}

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        kind, objective = view.settings.model.kind, view.settings.objective.kind
        if view.answers is None and says_text(kind, objective):  # for a run that did not finish
            view.answers = view.read("Generated text is", lambda: answers_of(run), None)
        own = answered(run) if (kind, objective) == ("omni", "next_embedding") else ""
        return [
            sections.header(view),
            page.missing(view),
            sections.spoken(view.answers) + own,
            page.probes(view),
            page.curves(view),
            page.warnings(view),
        ]

    def summary(self, run: OpenRun) -> list[str]:
        history = run.history()
        return last_losses(history[-1] if history else {})

    def usage(self, run: OpenRun, folder: str) -> str | None:
        if (run.dir / "visual_decoder").is_dir():
            return f'nextembed generate {shlex.quote(folder)} "red apple:" --target image -o apple.png'
        return model_part(run.config).usage(shlex.quote(folder))


def says_text(model: str, objective: str) -> bool:
    """Whether a run trained a model that continues documents; other objectives train a part of a frozen one."""
    return (model, objective) in (("emu", "emu"), ("omni", "next_embedding"))


def answers_of(run: OpenRun) -> Answers:
    """The output of a run's model for some documents of its data. Raises ConfigError if it cannot be run on them."""
    return written(run) if run.config.model.kind == "omni" else sections.answers_of(run)


def last_losses(last: Mapping[str, Any]) -> list[str]:
    """Both losses at the end, in one line; for an Omni the cosines with the next latent by modality."""
    if found := {k.partition("/")[2]: last[k] for k in last if k.startswith("cos_next/")}:
        line = "Cosine with the next latent: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        right = {k.partition("/")[2]: last[k] for k in last if k.startswith("top1/")}
        more = ", ".join(f"{name} {100 * value:.1f} %" for name, value in right.items())
        return [f"{line}." + (f" Top-1: {more}." if more else "")]
    if "text_loss" not in last:
        return []
    text = f"Text: {last['text_loss']:.3f} nats a token, {100 * last['text_accuracy']:.1f} % token accuracy"
    return [f"{text}. Latents: distance {last['regression_loss']:.4f}."]
