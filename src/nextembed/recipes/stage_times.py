"""Estimated time of each run in a chain, measured before the first is trained."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core import distributed
from ..core.code import trusting
from ..core.config import validated
from ..errors import ConfigError
from ..run import prepare, undecoded
from ..runs import RunConfig
from ..training.banner import step_seconds
from ..training.record import write_settings

MOST = 300_000_000  # parameters, from which on no untrained model is written to try the next stage on


def stage_seconds(stages: Sequence[RunConfig]) -> Iterator[float | None]:
    """Seconds that the steps of each stage take on this machine, as soon as they are known.

    A few passes over the first batch are timed, of untrained models in a scratch folder: each stage starts from the one
    before as it will when that is trained. None for what follows a model of more than MOST parameters.

    Raises what `fit` raises before its first step: a setting of the last stage is checked before the first one trains.
    """
    distributed.start(stages[0].train.device)
    with tempfile.TemporaryDirectory() as scratch:
        moved: dict[str, Path] = {}
        for number, stage in enumerate(stages):
            run_dir = Path(scratch) / stage.name
            run_dir.mkdir()
            try:
                seconds, continues = measured(run_dir, with_paths(stage, moved), number + 1 == len(stages))
            except ConfigError as err:
                if scratch not in str(err):
                    raise
                seconds, continues = None, False  # it needs files that only a trained stage has
            yield seconds
            if not continues:
                yield from [None] * (len(stages) - number - 1)
                return
            moved[str(stage.dir)] = run_dir


def measured(run_dir: Path, config: RunConfig, is_last: bool) -> tuple[float | None, bool]:
    """Seconds of a run's steps, and whether the next stage can start from what is then in its folder."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ready = prepare(run_dir, undecoded(config), None)
        seconds = step_seconds(ready.loop) * ready.loop.max_steps
        if is_last or ready.trained[1] > MOST:
            return seconds, False
        write_settings(run_dir, config, config.seed, ready.trained, ready.data)
        ready.loop.save_folders()
    return seconds, True


def with_paths(config: RunConfig, moved: dict[str, Path]) -> RunConfig:
    """The config with run folders that it names, and what lies in them, at other places."""

    def at(value: object) -> object:
        if isinstance(value, dict):
            return {name: at(own) for name, own in value.items()}
        if isinstance(value, list):
            return [at(own) for own in value]
        if isinstance(value, str):
            for folder, new in moved.items():
                if value == folder or value.startswith(f"{folder}/"):
                    return str(new) + value.removeprefix(folder)
        return value

    values = {name: at(own) for name, own in config.model_dump(mode="json", serialize_as_any=True).items()}
    with trusting(True):
        return validated(RunConfig, values)
