"""The contract of tasks: the purpose and evaluation of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from transformers import PreTrainedModel, ProcessorMixin

from ..core import distributed
from ..core.answers import Answers
from ..core.config import MODELS, Part, common_task
from ..core.objective import OBJECTIVES, Objective, ObjectiveSettings
from ..core.probe_table import ProbeTable
from ..core.run_folder import Line, Saved
from ..core.saved import load
from ..core.scores import BestScore, ClassScores, SegmentScores
from ..errors import ConfigError, DataError, NextEmbedError, unknown
from ..evaluation.probes.sweep import ProbeConfig
from ..models.parts import ModelPart
from ..report.view import RunView
from ..training.settings import TrainConfig
from ..training.watch import Probe, Say


class RunSettings(Protocol):
    """The part of a run's settings that a task reads (`runs.RunConfig`)."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> Part: ...
    @property
    def model(self) -> Part: ...
    @property
    def objective(self) -> ObjectiveSettings: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def probe(self) -> ProbeConfig: ...


class OpenRun(Protocol):
    """The part of a run that a task reads (`runs.Run`)."""

    dir: Path

    @property
    def config(self) -> RunSettings: ...
    def history(self) -> list[Line]: ...
    def source(self) -> Part:
        """The data part of its settings."""

    def seed(self) -> int:
        """Of its settings; 0 where there are none."""

    def probe_settings(self) -> ProbeConfig:
        """Of its settings; the defaults where there are none."""

    def saved(self) -> Saved: ...
    def probes(self) -> ProbeTable | None: ...
    def scores(self) -> ClassScores | SegmentScores | None: ...
    def answers(self) -> Answers | None: ...
    def model(self, weights: str | None = None, **options: Any) -> PreTrainedModel: ...
    def processor(self, weights: str | None = None) -> ProcessorMixin: ...


class Task:
    """The purpose and evaluation of a run. One of your own is a subclass in your own file, registered with `@register`
    and named by the `task` of an objective and a model part.

    name: as parts name it. metric: what the best weights are chosen by, greater is better; None keeps none.
    """

    name: ClassVar[str]
    metric: ClassVar[str | None] = None
    lora: ClassVar[str] = ""  # targets that `plan` proposes for LoRA; empty proposes none

    def class_names(self, data: Part) -> list[str]:
        """The class names that the model is built for, by class id.

        Args:
            data: checked data settings.

        Returns:
            The names; empty for a task without classes.

        Raises:
            ConfigError: the data has no labels to learn.
        """
        return []

    def check(self, config: RunSettings, backbone: PreTrainedModel) -> None:
        """Finds settings that would fail only after training.

        Args:
            config: of the run.
            backbone: the model.

        Raises:
            ConfigError: such a setting was found.
        """

    def quick(
        self,
        config: RunSettings,
        backbone: PreTrainedModel,
        objective: Objective,
        loading: Mapping[str, object],
        say: Say,
    ) -> Probe | None:
        """What runs every `train.probe_steps`, on the main rank.

        Args:
            config: of the run.
            backbone: as it trains.
            objective: as it trains.
            loading: what loaders need to know of the model.
            say: prints a line.

        Returns:
            backbone -> values by name ("eval/..."); None, said in one line, where there is nothing to measure on.
        """
        return None

    def finish(self, run: OpenRun, say: Say) -> dict[str, Any]:
        """Probes or scores a finished run and writes the result into its folder. All ranks call it.

        Args:
            run: the finished run.
            say: prints a line.

        Returns:
            The values that `Run.metrics` holds.
        """
        return {}

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        """The task's part of the report, between title and settings.

        Args:
            view: the files of the run; what cannot be shown is added to `view.missing`.
            run: opened, for its model and data.
            decoders: runs of the recipe latent_decoder that the user named.

        Returns:
            Sections of HTML.
        """
        return []

    def summary(self, run: OpenRun) -> list[str]:
        """What was measured, in sentences; the verdict follows them.

        Args:
            run: the finished run.

        Returns:
            The sentences.
        """
        return []

    def usage(self, run: OpenRun, folder: str) -> str | None:
        """A line that uses the model.

        Args:
            run: the finished run.
            folder: of its model.

        Returns:
            The line; None if there is none.
        """
        return None


TASKS: dict[str, Task] = {}


def register(cls: type[Task]) -> type[Task]:
    """Class decorator: the task is found by its name."""
    TASKS[cls.name] = cls()
    return cls


def task_of(config: RunSettings) -> Task:
    """The task of a run.

    Args:
        config: its objective and model decide.

    Returns:
        The task.

    Raises:
        ConfigError: objective and model do not fit, or the task is unknown.
    """
    name = common_task(config.objective, config.model)
    if name is None:
        task = config.objective.task
        fitting = [kind for kind, part in MODELS.classes.items() if part.task == task]
        hint = f"; for this objective set model.kind={' or '.join(fitting)}" if fitting else ""
        raise ConfigError(
            f"objective {config.objective.kind} is for {task}, model {config.model.kind} for {config.model.task}{hint}"
        )
    return find_task(name)


def find_task(name: str) -> Task:
    """A task by its name.

    Args:
        name: as registered.

    Returns:
        The task.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    return TASKS[name]


def model_part(config: RunSettings) -> ModelPart:
    """The model's settings.

    Args:
        config: of the run.

    Returns:
        The part.

    Raises:
        ConfigError: the part is no model.
    """
    if not isinstance(config.model, ModelPart):
        raise ConfigError(f"model.kind {config.model.kind} is not a ModelPart")
    return config.model


def saved_task(objective: str, model: str) -> Task:
    """The task of a run, by the kinds in its config.yaml.

    Args:
        objective: kind of the objective.
        model: kind of the model.

    Returns:
        The task; pretraining where a kind is unknown.
    """
    try:
        found = OBJECTIVES.find(objective)
    except NextEmbedError:
        return find_task("pretraining")
    try:
        return find_task(common_task(found, MODELS.find(model)) or found.task)
    except NextEmbedError:  # for another model, or an unknown task
        return TASKS.get(found.task, TASKS["pretraining"])


SPLITS = ("test", "validation")  # the first existing one is scored


def scored_folder(run: OpenRun) -> Path:
    """The model that is scored: of a run the best on validation, else the averaged, else the raw one.

    Args:
        run: a run, or a model without one.

    Returns:
        Its folder.
    """
    saved = run.saved()
    is_run = Path(saved.path).expanduser().resolve() == run.dir.resolve() and (run.dir / "config.yaml").is_file()
    return Path(saved.first_of("best", "ema", "raw") if is_run else saved.folder())


def weights_of(folder: Path) -> tuple[str, int | None]:
    """What the weights of a folder are.

    Args:
        folder: of a model.

    Returns:
        "raw" or "ema", and their step if it is known.
    """
    best = load(BestScore, file) if (file := folder / "score.json").is_file() else BestScore()
    return best.weights or ("ema" if folder.name == "ema" else "raw"), best.step


S = TypeVar("S", ClassScores, SegmentScores)


def finish_with(score: Callable[[OpenRun], S], run: OpenRun, say: Say) -> S | None:
    """Scores a finished run and writes scores.json.

    Args:
        score: computes the scores.
        run: the finished run.
        say: prints a line, for example why it cannot be scored.

    Returns:
        The scores; None if it cannot be scored.
    """
    if not run.config.probe.enabled:
        return None
    say("scoring")

    def scored() -> S:
        scores = score(run)
        scores.save(run.dir / "scores.json")
        return scores

    try:
        return distributed.on_main(scored)
    except (ConfigError, DataError) as err:
        say(f"no scores: {err}")
        return None
