"""The reader of run folders, checkpoints, model folders and hub ids."""

import re
import webbrowser
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin

from .core.belonging import own_file
from .core.code import check_code
from .core.config import DATA, MODELS, Config, Part, from_yaml, validated
from .core.files import read_text, write_text
from .core.objective import OBJECTIVES, ObjectiveSettings, Verdict
from .core.optim import OptimConfig
from .core.pretrained import load_pretrained
from .core.run_folder import RunFolder, Saved, find_saved, run_folder
from .core.types import Documents, DocumentSource, Role
from .core.verdicts import judge
from .data.images import EvalSamples, ImagePart
from .data.sources import ImageData
from .errors import ConfigError
from .evaluation.probes.sweep import ProbeConfig
from .models.loading import load_model, load_processor
from .models.nepa.settings import NepaModel
from .objectives.next_embedding import NextEmbeddingSettings
from .report.page import page, settings, skipped
from .report.view import RunView, read_view
from .tasks import Task, saved_task, task_of
from .toys import kinds as kinds  # registers every kind of data
from .training.settings import TrainConfig

DataPart = Annotated[SerializeAsAny[Part], BeforeValidator(DATA.parse)]
ModelPart = Annotated[SerializeAsAny[Part], BeforeValidator(MODELS.parse)]
ObjectivePart = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(OBJECTIVES.parse)]


class RunConfig(Config):
    """All settings of a run; RUN/config.yaml holds them, defaults included.

    Attributes:
        name: name of the run folder in output_dir.
        seed: seed of weights, data order, augmentation and everything that is sampled in training.
        output_dir: the folder of run folders.
        data: the data; chosen by `kind`, also `my_file.py:MyData`.
        model: the backbone that is trained; chosen by `kind`, also `my_file.py:MyModel`.
        objective: the objective; chosen by `kind`, also `my_file.py:MyObjective`.
        optim: the optimizer and its schedule.
        train: how long, how large and how precise.
        probe: how frozen features are measured.
        after: recipes that this one starts from; `nextembed train` first trains those whose run folder is not there.
    """

    name: str = "run"
    seed: int = Field(0, ge=0, lt=2**32)
    output_dir: str = "runs"
    data: DataPart = Field(default_factory=lambda: ImageData(source="emoji"))
    model: ModelPart = Field(default_factory=NepaModel)
    objective: ObjectivePart = Field(default_factory=NextEmbeddingSettings)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    after: list[str] = []

    @field_validator("name")
    @classmethod
    def _one_part_of_a_path(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.-]{1,100}", name) or name in (".", ".."):
            raise ValueError(
                f"'{name}' is not a valid folder name: use letters, digits, _, - and ., but not . or .. alone"
            )
        return name

    @property
    def dir(self) -> Path:
        """OUTPUT_DIR/NAME; a new run gets another folder if this exists."""
        return Path(self.output_dir).expanduser() / self.name


class Run(RunFolder):
    """A run, or a model without one.

        run = nextembed.open_run("runs/mine")
        run.metrics["loss"], run.config.train.max_steps
        model = run.model("ema")
        run.report()

    Attributes:
        path: as it was given.
        dir: folder of the run; of a lone model its own folder.
        metrics: the last logged line; after `fit` also what the run scored.
        trained: the model that `fit` trained, as it is in memory; else None.
    """

    def __init__(self, path: str | Path, folder: Path, config: RunConfig | None = None):
        super().__init__(folder)
        self.path = path
        self.trained: Any = None
        if config is not None:
            self.config = config

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: its verdict, what it scored, and its report."""
        shown = {name: value for name, value in self.metrics.items() if isinstance(value, int | float | str)}
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{figure(value)}</td></tr>" for name, value in shown.items())
        page = self.dir / "report.html"
        link = f'<a href="{escape(page.resolve().as_uri())}" target="_blank">report</a>' if page.is_file() else ""
        found = self.verdict() if shown else None
        verdict = f"<p>Verdict: <b>{found.word}</b>. {escape(found.sentence)}</p>" if found is not None else ""
        return f"<p><b>{escape(str(self.path))}</b> {link}</p>{verdict}<table>{rows}</table>"

    def open(self) -> Path:
        """Writes its report if there is none, and shows it in the browser.

        Raises:
            ConfigError: the folder holds no run.
        """
        page = self.dir / "report.html"
        page = page if page.is_file() else self.report()
        webbrowser.open(page.resolve().as_uri())
        return page

    @cached_property
    def config(self) -> RunConfig:
        """Its settings.

        Raises:
            ConfigError: Where there are none, CodeRefused for Python that was not allowed.
        """
        return read_run_config(self.dir)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        lines = self.history()
        return dict(lines[-1]) if lines else {}

    @cached_property
    def task(self) -> Task:
        return task_of(self.config)

    def verdict(self) -> Verdict:
        """Its verdict, by its curves, probes, scores and answers.

        Raises:
            ConfigError: For damaged files of these.
        """
        return judge(self.values.get("objective"), self.history(), self.probes(), self.scores(), self.answers())

    def seed(self) -> int:
        """The seed of the settings; 0 where none was saved."""
        values = self.values
        return validated(_Seed, {"seed": values["seed"]}).seed if "seed" in values else 0

    def source(self) -> Part:
        """The data part of its settings.

        Raises:
            ConfigError: Where there is none, CodeRefused for Python that was not allowed.
        """
        values = self.values
        if "data" not in values:
            raise ConfigError(f"{self.path} is not part of a run, so the data has to be named: --data SOURCE")
        check_code({"data": values["data"]}, self.dir / "config.yaml")
        return DATA.parse(values["data"])

    def data(self, split: Role, num_samples: int | None = None) -> EvalSamples | Documents:
        """A split of its data, as its model reads it.

        Args:
            split: "train", "validation" or "test".
            num_samples: of images at most so many, drawn with a fixed seed; None takes all.

        Returns:
            Images: samples with pixel_values float32 [C, S, S], label and key, without augmentation. Documents: decoded
            one after the other.

        Raises:
            ConfigError: no data in its settings, or of another kind.
            MissingSplit: there is no such split.
        """
        source = self.source()
        if isinstance(source, DocumentSource):
            return source.documents(split)
        if not isinstance(source, ImagePart):
            raise ConfigError(f"data of kind {source.kind} gives neither images nor documents")
        config = load_pretrained(AutoConfig, self.saved().folder())
        sizes = {"image_size": config.image_shape[0], "num_channels": config.num_channels}
        return source.eval_samples(split, num_samples=num_samples, **sizes)

    def probe_settings(self) -> ProbeConfig:
        """The probe settings of its run; the defaults where there are none."""
        found: ProbeConfig = validated(ProbeConfig, self.values.get("probe") or {}, "probe")
        return found

    def saved(self) -> Saved:
        return find_saved(self.path)

    def model(self, weights: str | None = None, **options: Any) -> PreTrainedModel:
        """Loads its model from disk.

        Args:
            weights: "raw", "ema" or "best"; None takes the first there is.
            options: as of `models.loading.load_model`: kind, device, attn_implementation, dtype.

        Returns:
            The model, in eval mode.

        Raises:
            ConfigError: there is no such model, or it does not load completely.
        """
        return load_model(self.saved().folder(weights), **options)

    def processor(self, weights: str | None = None) -> ProcessorMixin:
        """The processor that makes batches for its model.

        Args:
            weights: "raw", "ema" or "best"; None takes the first there is.

        Returns:
            An image processor, `EmuProcessor` or `OmniProcessor`, by the model.

        Raises:
            ConfigError: there is no such folder, or it holds no processor.
        """
        return load_processor(self.saved().folder(weights))

    def view(self) -> RunView:
        """Its files as plain values.

        Raises:
            ConfigError: For a folder that holds no run.
        """
        return read_view(self)

    def report(self, path: str | Path | None = None, decoders: tuple[str | Path, ...] = ()) -> Path:
        """Writes its HTML report from whatever the folder holds, whether the run is finished or not; the page says what
        is missing.

        Args:
            path: of the page; None is RUN/report.html.
            decoders: runs of the recipe latent_decoder on this model, to show its latents as pixels.

        Returns:
            The page.

        Raises:
            ConfigError: the folder holds no run, or a decoder does not load.
        """
        view = self.view()
        path = Path(path) if path is not None else own_file(self.dir, "report.html")
        task = saved_task(view.settings.objective.kind, view.settings.model.kind)
        sections = [*task.sections(view, self, decoders), skipped(view), settings(view)]
        write_text(path, page(view, sections))
        return path


def figure(value: float | str) -> str:
    """A metric for a page."""
    return escape(value) if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


class _Seed(Config):
    """The seed of a run, without its other settings.

    Attributes:
        seed: seed of the run.
    """

    seed: int = Field(0, ge=0, lt=2**32)


def open_run(path: str | Path) -> Run:
    """Opens a run folder, a checkpoint, a model folder or a hub id. Nothing is loaded yet.

    Args:
        path: where it is, or its hub id.

    Returns:
        The run: config, metrics, and methods that load its model, data and scores.

    Raises:
        ConfigError: there is no such path.
    """
    place = Path(path).expanduser()
    if not place.exists():
        find_saved(path)  # a hub id, or an error with the nearest name
    return Run(path, run_folder(place) or place)


def read_run_config(run: str | Path) -> RunConfig:
    """RUN/config.yaml. Raises ConfigError if there is none."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"no run in {file.parent}: it has no config.yaml")
    config: RunConfig = from_yaml(RunConfig, read_text(file), str(file))
    return config
