"""Files of features computed by Ray: each process has the model and takes one file after another. The only module that
imports ray."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import torch

from ...core.code import trusting
from ...core.config import DATA
from ...data.images import ImagePart
from ...data.rows import RowPlace
from ...errors import ConfigError, DataError, MissingExtra, NextEmbedError
from .embed import encoder_of
from .settings import ManySettings
from .shard_writing import Work, settings_of, write_file


class Task(TypedDict):
    """One file: its number, and its rows."""

    number: int
    begin: int
    end: int


class Worker:
    """A process of Ray: opens model and data once, then writes files."""

    def __init__(
        self, checkpoint: str, settings: dict[str, object], data: dict[str, object], folder: str, threads: int
    ):
        from ...data import kinds
        from ...toys import kinds as toys

        assert kinds.__all__ and toys  # registers every kind of data
        torch.set_num_threads(threads)  # as in the calling process: another number of threads rounds differently
        self.chosen = settings_of(settings)
        self.encoder = encoder_of(checkpoint, self.chosen)
        with trusting(True):  # checked by the calling process
            self.data = DATA.parse(data)
        self.folder = Path(folder)
        self.saved: dict[str, object] = dict(settings["saved"]) if isinstance(settings["saved"], dict) else {}

    def __call__(self, task: Task) -> dict[str, object]:
        """Writes a file; returns its number, or the error."""
        assert isinstance(self.data, ImagePart)
        data = self.data
        self.encoder.preprocessing = self.encoder.preprocessing._replace(
            mean=data.mean, std=data.std, background=data.background
        )
        own = Work(self.encoder, data, data.rows("train"), self.chosen, self.folder, self.saved)
        begin = int(task["begin"])
        try:
            write_file(own, int(task["number"]), RowPlace(begin, 0, begin), int(task["end"]))
        except NextEmbedError as err:
            return {"number": int(task["number"]), "error": str(err)}
        return {"number": int(task["number"]), "error": ""}


def compute(own: Work, settings: ManySettings, tasks: list[Task]) -> Iterator[int]:
    """Writes files on Ray; gives the number of each as it is done.

    Raises:
        MissingExtra: without Ray.
        ConfigError: for a model that is no path, and a cluster that cannot be reached.
        DataError: what a process found wrong.
    """
    if own.encoder.checkpoint is None:
        raise ConfigError("--engine ray: the processes of Ray load the model from a path or a hub id; give that")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("Ray", "ray") from None
    gpus = torch.cuda.device_count()
    workers = min(len(tasks), settings.ray_workers or max(1, gpus))
    try:
        own_cluster = not ray.is_initialized()
        if own_cluster:
            cpus = max(2, workers) if settings.ray_address is None else None
            ray.init(settings.ray_address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    except Exception as err:  # of a missing cluster
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"--ray-address {settings.ray_address}: no Ray cluster answers ({reason[:200]})") from None
    values = {**settings_of(settings.model_dump()).model_dump(mode="json"), "saved": own.saved}
    values |= own.encoder.place.key._asdict() | {"weights": settings.weights}
    data = own.data.model_dump(mode="json")
    whole = own.saved["data"]  # with absolute paths: processes of Ray have other working folders
    data |= {"source": whole["source"]} if isinstance(whole, dict) and "source" in whole else {}
    given = (str(own.saved["checkpoint"]), values, data, str(own.folder.resolve()))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    with contextlib.ExitStack() as after:
        if own_cluster:
            after.callback(ray.shutdown)
        rows = ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map(
            Worker,  # type: ignore[arg-type]  # Ray makes one in each process
            fn_constructor_args=(*given, torch.get_num_threads()),
            concurrency=workers,
            num_gpus=1 if gpus else 0,
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield int(row["number"])
