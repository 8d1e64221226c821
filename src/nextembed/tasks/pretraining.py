"""Pretraining without labels: evaluated by probes on frozen features, and by predictions on real images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from transformers import AutoConfig, PreTrainedModel

from ..core import distributed
from ..core.config import Part
from ..core.objective import Objective, ReadFeatures
from ..core.pretrained import ModelT, load_pretrained
from ..core.probe_table import ProbeTable, sentence
from ..core.run_folder import TEACHER
from ..core.types import IGNORE_LABEL, Backbone, Encodes
from ..data.images import ImagePart
from ..errors import ConfigError, DataError, NextEmbedError
from ..evaluation.generators import open_generator
from ..evaluation.probes.records import segment_data
from ..evaluation.probes.samples import load_data
from ..evaluation.probes.sweep import ProbeConfig, ProbeData, QuickProbe, sweep
from ..models.omni import OmniForPreTraining
from ..objectives.latent_decoder import FOLDER, load_decoder
from ..objectives.saved import load_objective, objective_beside, objective_of
from ..objectives.tokenizer import FOLDER as TOKENIZER
from ..objectives.tokenizer import load_tokenizer
from ..report import generated, page, prediction
from ..report.view import RunView, looking
from ..training.drawing import FOLDER as SAMPLES
from ..training.watch import Probe, Say
from .base import OpenRun, RunSettings, Task, register


@register
class Pretraining(Task):
    name: ClassVar[str] = "pretraining"

    def check(self, config: RunSettings, backbone: PreTrainedModel) -> None:
        config.probe.features(
            backbone.config.num_hidden_layers
        )  # otherwise a wrong layer would be found only after training

    def quick(
        self, config: RunSettings, backbone: PreTrainedModel, objective: Objective, loading: Mapping[str, Any], say: Say
    ) -> Probe | None:
        """Probes of the output and the middle layer."""
        try:
            data = load_data(config.data, config.probe, backbone.config)
            validation: Any = data.validation
            if all(validation[i]["label"] == IGNORE_LABEL for i in range(min(20, len(validation)))):
                raise DataError("the data has no labels")
        except (ConfigError, DataError) as err:
            say(f"no probe during training: {err}")
            return None
        return QuickProbe(data, config.probe, objective.read if objective.reads_itself else None)

    def finish(self, run: OpenRun, say: Say) -> dict[str, Any]:
        """Writes probe.json. "probe/linear", the same "_untrained" and "_pixels", ...: of the best rows."""
        if not run.config.probe.enabled:
            return {}
        say("probing")
        try:
            table = probe(run, all_ranks=True)
            distributed.on_main(lambda: table.save(run.dir / "probe.json"))
        except (ConfigError, DataError) as err:
            say(f"no probes: {err}")
            return {}
        return accuracies(table)

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        if view.probes is None and view.settings.probe.enabled and not (run.dir / "probe.json").is_file():
            view.missing.append("There is no probe table: the run was not probed (no labels, or it did not finish).")
        looked: prediction.Looked | None = None
        for decoder in decoders:
            load_decoder(decoder)  # a wrong name is an error, not a note on the page
        made = generated_sections(view, run)
        if view.settings.objective.kind == TOKENIZER:  # its model is neither read nor trained
            return [prediction.header(view, None), page.missing(view), page.curves(view), page.warnings(view), made]
        try:
            with looking(run.dir):
                model = run.model(device="cpu", attn_implementation="eager")
                own = [run.dir] if (run.dir / FOLDER).is_dir() else []
                own_reader = objective_of(run.saved().folder(), model)
                looked = prediction.look(
                    model,
                    run.source(),
                    prediction.is_causal(view, model.config),
                    [*decoders, *own],
                    None if own_reader is None else own_reader.read,
                )
        except NextEmbedError as err:
            if decoders:  # requested by name
                raise
            view.missing.append(f"There are no pictures: {err}.")
        return [
            prediction.header(view, looked),
            page.missing(view),
            page.probes(view),
            page.curves(view),
            page.warnings(view),
            made,
            prediction.pictures(view, looked) if looked is not None else "",
        ]

    def summary(self, run: OpenRun) -> list[str]:
        table = run.probes()
        return sentence(table) if table is not None else ["No probe was run."]

    def usage(self, run: OpenRun, folder: str) -> str:
        name = TEACHER if TEACHER in run.saved().folders else "model"
        plain = f'import nextembed, transformers; transformers.AutoModel.from_pretrained("{folder}/{name}")'
        return run.config.objective.usage(folder) or plain


def generated_sections(view: RunView, run: OpenRun) -> str:
    """Reconstructions of a tokenizer, or samples of an objective; empty for others."""
    try:
        with looking(run.dir):
            return _generated(view, run)
    except NextEmbedError as err:
        view.missing.append(f"Generated images are left out: {err}.")
        return ""


def _generated(view: RunView, run: OpenRun) -> str:
    is_tokenizer = view.settings.objective.kind == TOKENIZER
    saved = run.saved()
    if not is_tokenizer and objective_beside(saved.folder()) is None:
        return ""
    data = run.source()
    if not isinstance(data, ImagePart):
        return ""
    if is_tokenizer:
        config = load_pretrained(AutoConfig, saved.folder())
        pixels, split = prediction.images_of(data, config)
        found = generated.give_back(load_tokenizer(run.dir), pixels, data.mean, data.std)
        return generated.reconstructions(found, split)
    model, objective, _, _ = open_generator(saved, device="cpu")
    if objective is None or not objective.generates:
        return ""
    rows = generated.draw_rows(objective, cast(Backbone, model), data.class_names(), data.mean, data.std)
    return generated.samples(rows, generated.from_training(run.dir / SAMPLES, model.config.image_shape))


def probe(
    run: OpenRun, data: Part | None = None, config: ProbeConfig | None = None, all_ranks: bool = False
) -> ProbeTable:
    """Probes of a run, a checkpoint or any saved model: its weights, its EMA weights if there are any, and the same
    network untrained (initialised with the run's seed). Nothing is written; see `ProbeTable.save`.

    Args:
        run: opened.
        data: labelled images, or of an Omni rows of the modality `config.modality`; None takes the run's own.
        config: which features, on how many images; None takes the run's own.
        all_ranks: every rank calls it and takes its share, see `sweep`.

    Raises:
        ConfigError: no model, or a source that cannot be read.
        DataError: no labels.
    """
    source = data if data is not None else run.source()
    settings = config if config is not None else run.probe_settings()

    def opened() -> tuple[dict[str, PreTrainedModel], ProbeData, dict[str, ReadFeatures]]:
        models = models_of(run)
        first = next(iter(models.values()))
        if isinstance(first, OmniForPreTraining):
            return models, segment_data(source, settings, first.processor), readers_of(run, models)
        return models, load_data(source, settings, first.config), readers_of(run, models)

    models, samples, readers = distributed.together(opened) if all_ranks else opened()
    return sweep(models, samples, settings, all_ranks, readers)


def readers_of(run: OpenRun, models: Mapping[str, PreTrainedModel]) -> dict[str, ReadFeatures]:
    """The objectives that provide the features of these models, if they were saved with them. That of "untrained" is
    initialised with the run's seed, like its model."""
    saved = run.saved()
    found: dict[str, ReadFeatures] = {}
    for name, model in models.items():
        trained = name in saved.folders
        if (folder := objective_beside(saved.folder(name if trained else None))) is not None:
            found[name] = load_objective(folder, model, None if trained else run.seed()).read
    return found


def models_of(run: OpenRun) -> dict[str, PreTrainedModel]:
    """Backbones "raw", "ema" (where saved) and "untrained". Raises ConfigError if there is none of ours."""
    saved = run.saved()
    models: dict[str, PreTrainedModel] = {name: run.model(name) for name in ("raw", "ema") if name in saved.folders}
    first = next(iter(models.values()))
    if not isinstance(first, Encodes):
        raise ConfigError(f"{saved.path} contains a {type(first).__name__}, which has no latents to probe")
    models["untrained"] = untrained(first, run.seed())
    return models


def untrained(model: ModelT, seed: int = 0) -> ModelT:
    """The same network with fresh weights drawn from `seed`; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh: Any = type(model)(model.config).eval()
    found: ModelT = fresh.to(model.device)
    return found


def accuracies(table: ProbeTable) -> dict[str, float]:
    """The best row of each probe, measured on test if there is a test split, with its baselines."""
    found = {}
    for name in ("linear", "knn", "attentive"):
        for ending, row in (("", table.best(name)), ("_untrained", table.best(name, "untrained"))):
            if row is not None:
                value = row.accuracy if row.accuracy is not None else row.validation_accuracy
                found[f"probe/{name}{ending}"] = value
        pixels = table.pixels or table.pixels_validation
        if name in pixels:
            found[f"probe/{name}_pixels"] = pixels[name]
    return found
