"""Facts for a model card, from a run folder: nothing is assumed, missing facts stay empty."""

import contextlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.config import DATA
from ..core.objective import Verdict
from ..core.probe_table import ProbeTable
from ..core.run_folder import (
    DataCounts,
    Line,
    find_saved,
    read_config,
    read_environment,
    read_history,
    read_skipped,
    run_folder,
)
from ..core.scores import ClassScores
from ..core.verdicts import judge
from ..data import sources  # noqa: F401  registers its kinds
from ..errors import ConfigError, NextEmbedError
from ..models.nepa import ViTNepaConfig
from ..objectives.saved import ObjectiveFile, objective_beside
from ..report.settings import Settings, settings_of
from .graph import class_names
from .loading import is_classifier, preprocessing, read_model_config

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ROLES = ("train", "validation", "test")


@dataclass
class Facts:
    """A model and its origin.

    folder: its Hugging Face folder. weights: "raw" or "ema". settings: the run's resolved config, flat, by dotted name.
    recipe, changes: the recipe's name and (setting, recipe's value, run's value) where the run differs. data: name of
    the data; dataset: its hub id, if it is one. splits: (role, split, number of images or None). scores: scores.json.
    skipped: lines of skipped.jsonl. history: lines of metrics.jsonl, of which `last` is the last. objective: folder of
    the one saved with the model; reader: its kind, where features are those that it reads.
    """

    folder: Path
    config: ViTNepaConfig
    is_classifier: bool
    weights: str = "raw"
    class_names: list[str] = field(default_factory=list)
    num_classes: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None
    num_parameters: int = 0
    run: Path | None = None
    objective: Path | None = None
    reader: str | None = None
    settings: dict[str, object] = field(default_factory=dict)
    recipe: str | None = None
    changes: list[tuple[str, object, object]] = field(default_factory=list)
    data: str | None = None
    dataset: str | None = None
    splits: list[tuple[str, str, int | None]] = field(default_factory=list)
    probes: ProbeTable | None = None
    scores: ClassScores | None = None
    verdict: Verdict | None = None
    last: dict[str, Any] = field(default_factory=dict)
    history: list[Line] = field(default_factory=list)
    skipped: list[dict[str, object]] = field(default_factory=list)


def gather(path: str | Path, weights: str | None = None) -> Facts:
    """The facts about a model.

    Args:
        path: a run, a checkpoint or a model folder.
        weights: "raw", "ema" or "best"; None takes those of the best probe, else raw ones.

    Raises:
        ConfigError: if there is no model of ours.
    """
    run = run_folder(path)
    probes = ProbeTable.load(file) if run and (file := run / "probe.json").is_file() else None
    best = probes.best() if probes else None
    if weights is None and best is not None and Path(path).resolve() == run:
        weights = best.weights
    folder = find_saved(path).local_folder(weights)
    config = read_model_config(folder)
    facts = Facts(folder, config, is_classifier(config), "ema" if folder.name == "ema" else "raw")
    facts.num_parameters = count_parameters(folder)
    facts.mean, facts.std = preprocessing(folder)
    facts.objective = objective_beside(folder)
    if facts.objective is not None and (saved := ObjectiveFile.load(facts.objective)).reads_itself:
        facts.reader = saved.name
    if facts.is_classifier:
        facts.class_names, facts.num_classes = class_names(config), len(config.id2label or {})
    if run is not None:
        _add_run(facts, run, probes)
    return facts


def _add_run(facts: Facts, run: Path, probes: ProbeTable | None) -> None:
    values = read_config(run)
    settings = settings_of(values, run)
    facts.run, facts.settings, facts.probes = run, flat(values), probes
    if facts.is_classifier and (file := run / "scores.json").is_file():
        facts.scores = ClassScores.load(file)
    history = read_history(run)
    facts.history, facts.last = history, history[-1] if history else {}
    facts.skipped = read_skipped(run)
    if history:
        facts.verdict = judge(values.get("objective"), history, probes, facts.scores)
    if settings.data.source:
        source = str(settings.data.source)
        is_hub = bool(HUB_ID.fullmatch(source)) and not Path(source).exists()
        # A path belongs to one machine and may reveal private information, so only its name is published.
        facts.data, facts.dataset = (source, source) if is_hub else (Path(source).name, None)
    elif settings.data.kind:
        facts.data = settings.data.kind.split(":")[-1]
    facts.splits = _splits(values.get("data") or {}, settings, facts)


def _splits(data: dict[str, object], settings: Settings, facts: Facts) -> list[tuple[str, str, int | None]]:
    """Names of the splits, with their number of images: as counted at the start of the run; else counted now if the
    data is here (nothing is downloaded), else from the run's files."""
    own, probe = settings.data, settings.probe
    counted = read_environment(facts.run).data if facts.run is not None else DataCounts()
    names = dict(zip(ROLES, (own.split, own.validation, own.test)))
    wanted = dict(zip(ROLES, (0, probe.num_validation or 0, probe.num_test or 0)))
    found: list[tuple[str, str, int | None]] = []
    here = None if facts.dataset else _count(data)
    for role in ROLES:
        size = _recorded(role, wanted[role], facts) if here is None else here.get(role)
        size = own_count if (own_count := asdict(counted)[role]) is not None else size
        if size or (here is None and names[role]):
            found.append((role, names[role] or role, size))
    return found


def _count(data: dict[str, object]) -> dict[str, int] | None:
    """Images by role of data on this machine; None if it is not here (any more), or streamed."""
    sizes: dict[str, int] = {}
    try:
        part: Any = DATA.parse(data)
        sizes["train"] = len(part.rows("train"))
        for role in ROLES[1:]:
            with contextlib.suppress(ConfigError):  # there is no such split
                sizes[role] = len(part.rows(role))
    except (NextEmbedError, OSError, TypeError):
        return None
    return sizes


def _recorded(role: str, wanted: int, facts: Facts) -> int | None:
    """Training images as counted, or from images seen and epochs; the others from the probes, where these took all
    there were, fewer than wanted."""
    if role == "train":
        seen, epochs = facts.last.get("samples_seen"), facts.last.get("epoch")
        rows = facts.last.get("data_rows") or (seen / epochs if seen and epochs else None)
        return round(rows) if rows else None
    size = facts.probes.images.get(role) if facts.probes else None
    return size if size and size < wanted else None


def count_parameters(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    num = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    size = 1
                    for side in tensors.get_slice(name).get_shape():
                        size *= side
                    num += size
        except Exception as err:
            raise ConfigError(f"cannot read {file}: {str(err).splitlines()[0]}") from err
    return num


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as {"train.max_steps": 600, ...}."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def differences(recipe: dict[str, object], run: dict[str, object]) -> list[tuple[str, object, object]]:
    """(setting, recipe's value, run's value) where two flat configs differ; names and places of files left out."""
    private = ("name", "output_dir", "data.source", "data.num_workers", "train.device", "train.trackers")
    return [
        (name, recipe.get(name), run.get(name))
        for name in dict.fromkeys([*recipe, *run])
        if name not in private and _plain(recipe.get(name)) != _plain(run.get(name))
    ]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
