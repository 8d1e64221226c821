"""Comparison of existing runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..core.code import allowed_files
from ..core.config import to_yaml
from ..core.files import to_json, write_json
from ..core.run_folder import Saved
from ..data.images import ImagePart
from ..errors import ConfigError
from ..runs import Run, open_run
from .configs import label_counts
from .jobs import PROBES, Job
from .overview import Overview
from .page import write_page
from .place import SETTINGS, Asked, held
from .pool import Pool
from .scores import RunScores, load_scores
from .settings import CompareSettings
from .table import Comparison, rows_of


def compare_runs(words: Sequence[str], settings: CompareSettings, folder: str | Path | None = None) -> Comparison:
    """Existing runs; those that differ only in the seed form one row. Errors as of `compare`."""
    place = Path(folder).expanduser() if folder else Path("runs") / "compare-runs"
    if len({str(Path(word).resolve()) for word in words}) < len(words):
        raise ConfigError("a run is named twice")
    jobs = existing_jobs(words, settings, place)
    with held(place) as before:
        if before is None:
            write_json(place / SETTINGS, asdict(Asked("", {}, 0)))
        elif before.config:
            raise ConfigError(f"{place} contains a comparison of objectives; choose another --folder")
        overview = Overview()
        pool = Pool(settings.jobs, settings.threads or torch.get_num_threads(), overview.changed, overview.tick)
        with overview.of(jobs):
            pool.run(jobs)
        runs: list[RunScores] = [one for job in jobs for one in load_scores(job.result)]
        notes = ["Runs as they are: their budgets and settings may differ."]
        found = Comparison("runs", "as trained", rows_of(runs), runs, notes=notes, folder=str(place))
        found.save(place)
        write_page(found, place)
        return found


def short_names(words: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    paths = [Path(word).expanduser().resolve() for word in words]
    for num in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-num:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def existing_jobs(words: Sequence[str], settings: CompareSettings, place: Path) -> list[Job]:
    """Each in a folder of its own, which no other run gets, nor the same one once it has changed.

    Raises ConfigError for a folder without a finished model.
    """
    rows: dict[str, str] = {}  # by settings without name and seed
    found = []
    for word, name in zip(words, short_names(words)):
        opened = open_run(word)
        config, saved = opened.config, opened.saved()
        same = to_yaml(config.model_copy(update={"name": "run", "seed": 0, "output_dir": "runs"}))
        row = rows.setdefault(same, name)
        labels = label_counts(config.data) if isinstance(config.data, ImagePart) else {}
        job = Job(
            do="existing",
            folder="",
            row=row,
            seed=config.seed,
            labels=labels if settings.finetune_steps and config.model.task == "pretraining" else {},
            classes=len(config.data.class_names()) if labels and isinstance(config.data, ImagePart) else 0,
            finetune_steps=settings.finetune_steps,
            path=str(word),
        )
        key = hashlib.sha256(f"{to_json(asdict(job) | {'row': '', 'path': ''})} {stamps(opened, saved)}".encode())
        job.folder = str(place / f"{name.strip('/').replace('/', '-')}-{key.hexdigest()[:10]}")
        job.code = [str(file) for file in allowed_files()]
        found.append(job)
    return found


def stamps(run: Run, saved: Saved) -> list[tuple[str, int, int]]:
    """Path, size and time of the files that the scores of a run come from."""
    files = [run.dir / name for name in ("config.yaml", "metrics.jsonl", PROBES)]
    files += [file for folder in saved.folders.values() for file in sorted(Path(folder).glob("*"))]
    known = [(file.resolve(), file.stat()) for file in files if file.is_file()]
    return [(str(file), at.st_size, at.st_mtime_ns) for file, at in known]
