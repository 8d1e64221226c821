"""`nextembed.compare`: objectives at equal cost, or existing runs, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..core.code import allowed_files
from ..core.config import apply_overrides, from_yaml, to_yaml, validated, with_values
from ..core.files import write_json
from ..core.run_folder import run_folder
from ..core.saved import load
from ..data.images import ImagePart
from ..errors import ConfigError
from ..models.nepa.settings import NepaModel
from ..objectives.tokenizer import TokenizerSettings
from ..objectives.tokens import TokenSettings
from ..recipes.fitting import dotted
from ..recipes.listing import listed
from ..recipes.loading import load as load_recipe
from ..runs import RunConfig
from .budget import Pace, checked_steps
from .configs import (
    NUM_PROBES,
    checked_base,
    chosen_objectives,
    label_counts,
    row_config,
    stage_of,
    supervised_config,
    trials,
    with_length,
)
from .jobs import Job
from .overview import Overview
from .page import write_page
from .place import SETTINGS, Asked, held
from .pool import Pool, State
from .scores import load_scores
from .settings import CompareSettings
from .table import Comparison, rows_of
from .trained import compare_runs

SUPERVISED = "from scratch"
UNTRAINED = "untrained"
TRIAL_SHARE = 0.25  # of the budget, for each trial
STAGE_SHARE = 0.25  # of the budget, for the tokenizer of a row that needs one


def compare(
    what: str | Sequence[str | Path],
    objectives: Sequence[str] | None = None,
    folder: str | Path | None = None,
    settings: CompareSettings | Mapping[str, object] | None = None,
    **overrides: object,
) -> Comparison:
    """Trains several objectives on the same images, model and budget, and scores them in the same way; or scores
    existing runs.

        found = nextembed.compare("fashion_mnist", ["nepa", "mae"], settings={"minutes": 5, "seeds": 3})
        found = nextembed.compare(["runs/a", "runs/b"])

    The same call resumes where it was stopped; more objectives or seeds are added to the table.

    Args:
        what: a recipe's name, a config.yaml, a folder of images, a Parquet file or a hub id: the data, and the size of
            the model. Or run folders.
        objectives: NAME of the recipes NAME_demo: "nepa", "mae", ...; None takes all that fit images.
        folder: of the comparison; None is runs/compare-NAME.
        settings: budget, seeds and the like, see `CompareSettings`.
        **overrides: settings of the base to change, as of `fit`: `data={"flip_rate": 0}`.

    Returns:
        The comparison; its files are in its folder: comparison.json, .md, .csv and .html.

    Raises:
        ConfigError: before anything is trained: an objective that is unknown, named twice or does not fit, a budget too
            small for one step, a folder of another comparison.
        TrainingError: a process ended before its job was done.
    """
    given = settings if isinstance(settings, CompareSettings) else validated(CompareSettings, dict(settings or {}))
    words = [what] if isinstance(what, str | Path) else list(what)
    if not words:
        raise ConfigError("name a recipe, a data source, or runs to compare")
    if all(is_run(word) for word in words) and (len(words) > 1 or objectives is None):
        if overrides or objectives:
            raise ConfigError("finished runs are compared as they are: leave out objectives and settings")
        return compare_runs([str(word) for word in words], given, folder)
    if len(words) > 1:
        missing = next(word for word in words if not is_run(word))
        raise ConfigError(f"{missing} is not a run; name several runs, or one recipe or data source")
    base = base_config(str(words[0]), given.budget_minutes)
    if overrides:
        base = with_values(base, dotted(overrides))
    return compare_objectives(base, str(words[0]), objectives, given, folder)


def is_run(word: str | Path) -> bool:
    place = Path(word).expanduser()
    return place.is_dir() and run_folder(place) == place.resolve()


def base_config(source: str, minutes: float | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe or settings of this name; anything else is a source of images, for which `nepa_images` chooses size,
    patch and batch."""
    place = Path(source).expanduser()
    named = source.removesuffix("_tiny") in listed() or ".py:" in source or place.suffix in (".yaml", ".yml")
    if named or is_run(place):
        config = load_recipe(source)
    else:
        config = load_recipe("nepa_images", data=source, minutes=minutes or 10.0)
    return apply_overrides(config, overrides)


def compare_objectives(
    base: RunConfig,
    name: str,
    objectives: Sequence[str] | None,
    settings: CompareSettings,
    folder: str | Path | None = None,
) -> Comparison:
    """See `compare`. base: settings of data, model and batch."""
    num_frames = base.model.num_frames if isinstance(base.model, NepaModel) else 1
    own = chosen_objectives(list(objectives) if objectives else None, num_frames)
    base = checked_base(base)
    if settings.num_probe is not None:
        base = base.model_copy(update={"probe": base.probe.model_copy(update={"num_train": settings.num_probe})})
    title = Path(name).stem or name
    place = Path(folder) if folder else Path(base.output_dir) / f"compare-{title}"
    plan = Plan(base, own, settings, place.expanduser(), title)
    with held(plan.place) as before:
        plan.check_folder(before)
        return plan.run(Overview())


class Plan:
    """All jobs of a comparison, in their order."""

    def __init__(self, base: RunConfig, own: dict[str, RunConfig], settings: CompareSettings, place: Path, title: str):
        self.base, self.own, self.settings, self.place, self.title = base, own, settings, place, title
        self.threads = settings.threads or torch.get_num_threads()
        self.on_cpu = base.train.on_cpu()
        assert isinstance(base.data, ImagePart)
        self.labels = label_counts(base.data)
        self.classes = len(base.data.class_names()) if self.labels else 0
        self.code = [str(file) for file in allowed_files()]

    def check_folder(self, before: Asked | None) -> None:
        """Writes the settings of the folder. Raises ConfigError if it was started with others, because its results
        would not be comparable."""
        free = {"seeds", "jobs", "threads"}
        asked = Asked(to_yaml(self.base), self.settings.model_dump(mode="json", exclude=free), self.threads)
        file = self.place / SETTINGS
        if before is None:
            write_json(file, asdict(asked))
            return
        changed = [name for name, value in asked.settings.items() if before.settings.get(name) != value]
        if not before.config:
            changed.append("runs that were there")
        elif to_yaml(from_yaml(RunConfig, before.config, str(file))) != asked.config:  # regardless of comments
            changed.append("its data, model or training")
        if changed:
            raise ConfigError(
                f"{self.place} contains a comparison with other settings ({', '.join(changed)}); choose another "
                "--folder, or use the same settings"
            )
        self.threads = before.threads  # of the budget

    def job(self, do: str, row: str, where: str, config: RunConfig, seed: int = 0, **more: Any) -> Job:
        scored = do in ("run", "scratch")
        return Job(
            do=do,  # type: ignore[arg-type]  # checked where a worker reads it
            folder=str(self.place / where),
            row=row,
            config=to_yaml(config),
            seed=seed,
            minutes=self.settings.budget_minutes,
            labels=self.labels if scored else {},
            classes=self.classes,
            finetune_steps=self.settings.finetune_steps,
            code=self.code,
            **more,
        )

    def run(self, overview: Overview) -> Comparison:
        pool = Pool(self.settings.jobs, self.threads, overview.changed, overview.tick)
        for note in self.missing():
            overview.say(note)
        steps = self.paces(pool, overview)
        chosen = self.tuned(pool, overview, steps)
        jobs = self.jobs(steps, chosen)
        with overview.of(jobs):
            changed = pool.watch

            def watch(state: State) -> None:
                changed(state)
                if state.state == "done":
                    self.collect(jobs, save=True)

            pool.watch = watch  # after each job, so that the table can be viewed
            pool.run(jobs)
        return self.collect(jobs, save=True)

    def paces(self, pool: Pool, overview: Overview) -> dict[str, int]:
        """Steps of each row, from the measured cost of a step. Raises ConfigError for the first row that cannot run,
        before any is trained."""
        configs = {name: row_config(self.base, config) for name, config in self.own.items()}
        stages = {name: stage_of(self.base, config) for name, config in self.own.items()}
        configs |= {tokenizer_of(name): stage for name, stage in stages.items() if stage is not None}
        if self.labels:
            configs[SUPERVISED] = supervised_config(self.base)
        jobs = [self.job("pace", name, f"{folder_of(name)}/pace", config) for name, config in configs.items()]
        with overview.of(jobs):
            pool.run(jobs, side_by_side=False)
        found = {job.row: load(Pace, job.result) for job in jobs}
        return {
            name: checked_steps(name, pace, self.settings, self.threads, self.on_cpu) for name, pace in found.items()
        }

    def row(
        self, name: str, steps: dict[str, int], seed: int, tuned: dict[str, float], share: float = 1.0
    ) -> tuple[RunConfig, str]:
        """Settings of a row's run for a share of the budget, and those of its tokenizer, as YAML, if it has one."""
        probes = NUM_PROBES if share == 1 else 1
        stage, text = stage_of(self.base, self.own[name], seed), ""
        if stage is not None:
            few = max(1, round(STAGE_SHARE * share * steps[tokenizer_of(name)]))
            text = to_yaml(without_probe(with_length(stage, few)))
            share *= 1 - STAGE_SHARE
        config = row_config(self.base, self.own[name], seed, tuned)
        return with_length(config, max(1, round(share * steps[name])), probes), text

    def trial_jobs(self, steps: dict[str, int]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for name in self.own:
            found[name] = []
            for number, factors in enumerate(trials(self.settings.tune)):
                config, stage = self.row(name, steps, 0, factors, TRIAL_SHARE)
                where = f"{name}/trial-{number}"
                found[name].append(self.job("trial", name, where, config, stage=stage, tuned=factors))
        return found

    def tuned(self, pool: Pool, overview: Overview, steps: dict[str, int]) -> dict[str, dict[str, float]]:
        """Factors of each objective's learning rate: those whose short run is best on validation."""
        by_name = self.trial_jobs(steps)
        jobs = [job for own in by_name.values() for job in own]
        with overview.of(jobs):
            pool.run(jobs)
        found = {}
        for name, own in by_name.items():
            scores = [load_scores(job.result)[0] for job in own]
            best = max(scores, key=lambda one: one.values.get("linear", -1.0), default=None)
            found[name] = dict(best.tuned) if best is not None else {}
        return found

    def jobs(self, steps: dict[str, int], chosen: dict[str, dict[str, float]]) -> list[Job]:
        """One seed after another, so that there is a table early."""
        found = []
        for seed in range(self.settings.seeds):
            for name, tuned in chosen.items():
                settings, stage = self.row(name, steps, seed, tuned)
                found.append(self.job("run", name, f"{name}/seed-{seed}", settings, seed, stage=stage, tuned=tuned))
            if self.labels:
                config = self.base.model_copy(update={"seed": seed})
                found.append(self.job("untrained", UNTRAINED, f"{UNTRAINED}/seed-{seed}", config, seed))
                settings = with_length(supervised_config(self.base, seed), steps[SUPERVISED])
                where = f"{folder_of(SUPERVISED)}/seed-{seed}"
                found.append(self.job("scratch", SUPERVISED, where, without_probe(settings), seed))
        return found

    def collect(self, jobs: Sequence[Job], save: bool = False) -> Comparison:
        """The table so far; save: also as files."""
        runs = [one for job in jobs if job.result.is_file() for one in load_scores(job.result)]
        tried = [self.place / name / f"trial-{number}" / "scores.json" for name in self.own for number in range(9)]
        found = Comparison(
            name=self.title,
            budget=self.settings.budget_in_words(self.threads, self.on_cpu),
            rows=rows_of(runs),
            runs=runs,
            trials=[one for file in tried if file.is_file() for one in load_scores(file)],
            notes=[*self.missing(), *self.notes()],
            settings=self.settings.model_dump(mode="json")
            | {"threads": self.threads, "on_cpu": self.on_cpu, "base": to_yaml(self.base)},
            folder=str(self.place),
        )
        if save:
            found.save(self.place)
            write_page(found, self.place)
        return found

    def missing(self) -> list[str]:
        """Notes about values that cannot be measured."""
        if self.labels:
            return []
        return [
            "The training images have no labels, or only one class: probes and fine-tuning cannot be measured "
            "(data.label_column, data.label_file); the table has speed, memory, parameters and verdicts."
        ]

    def fewer_codes(self) -> list[str]:
        """ "igpt 18", of rows whose codebook was made to fit."""
        found = []
        for name, own in self.own.items():
            config, stage = row_config(self.base, own), stage_of(self.base, own)
            for default, fitted in ((own, config), (stage and load_recipe(own.after[-1]), stage)):
                before, now = (codes_of(one) for one in (default, fitted))
                if before is not None and now is not None and now < before:
                    found.append(f"{name} {now}")
        return found

    def notes(self) -> list[str]:
        fewer = self.fewer_codes()
        found = [
            *([f"Fewer codes than the default, because the batch is small: {', '.join(fewer)}."] if fewer else []),
            f"Budget of each run: {self.settings.budget_in_words(self.threads, self.on_cpu)}; probes, "
            "checkpoints and the few seconds that measure the cost of a step are not counted. The number of "
            "steps is derived from that cost, so that the learning-rate schedule ends with the budget.",
        ]
        if self.settings.seeds > 1:
            found.append(f"± is the standard deviation over {self.settings.seeds} seeds.")
        if self.labels:
            assert isinstance(self.base.data, ImagePart)
            few = " and ".join(str(self.classes * one) for one in self.labels.values())
            found.append(
                "Layer, pooling and attention of the probes are chosen on validation images and measured once on "
                "test; the columns of the output layer use fixed settings."
            )
            if self.settings.finetune_steps:
                found.append(
                    f"Fine-tuning: {few} labels, redrawn for each seed; {self.settings.finetune_steps} steps for "
                    "every row, full attention, mean over patches, weights of the last step. From scratch trains for "
                    "the same number of steps on these labels, and for the whole budget on all labels."
                )
        staged = [name for name, config in self.own.items() if stage_of(self.base, config) is not None]
        if staged:
            found.append(
                f"{' and '.join(staged)}: {STAGE_SHARE:.0%} of the budget trains the tokenizer, on the same "
                "images, and is counted in minutes and images; class labels are not used."
            )
        if self.settings.tune:
            found.append(
                f"Tuning: {self.settings.tune} trials of each objective, of {TRIAL_SHARE:.0%} of the budget, judged by "
                "a linear probe on validation images: "
                + "; ".join(", ".join(f"{name} x {value:.2g}" for name, value in one.items())
                            for one in trials(self.settings.tune)) + "."
            )  # fmt: skip
        return found


def without_probe(config: RunConfig) -> RunConfig:
    """A supervised run without validation during training: its last weights are scored."""
    return config.model_copy(update={"train": config.train.model_copy(update={"probe_steps": None})})


def codes_of(config: RunConfig | None) -> int | None:
    """Of its codebook, where it has one."""
    objective = config.objective if config is not None else None
    return objective.num_codes if isinstance(objective, TokenSettings | TokenizerSettings) else None


def tokenizer_of(name: str) -> str:
    return f"{name} tokenizer"


def folder_of(name: str) -> str:
    return name.replace(" ", "-")
