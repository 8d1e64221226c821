"""The folder of a run: made for it alone, locked by one process, and removed if the run fails at the start."""

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..core import distributed
from ..core.belonging import check_links
from ..core.files import acquire, free_folder, write_text
from ..errors import NextEmbedError
from .checkpoint import clean, last_checkpoint

LOCK, LAUNCH = ".lock", ".launch"
BEFORE_TRAINING = (LOCK, LAUNCH, "skipped.jsonl")  # the only files that a run writes before its config.yaml


@contextlib.contextmanager
def opened(folder: Path, resume: bool, exact: bool = False) -> Iterator[Path]:
    """The run's folder while the block runs, on every rank; no other process can train there.

    folder: of a run to resume, or of a new one, which gets NAME-2, ... if that is taken; exact: or none at all. An
    error or Ctrl-C before config.yaml is there leaves no new folder, so that the next try gets its name. Raises
    ConfigError, on every rank, if no folder can be made or another process uses it.
    """
    held: list[IO[bytes]] = []

    def take() -> Path:
        if resume:
            check_links(folder)  # another process may have made them before
        run_dir = folder if resume else free_folder(folder.parent, folder.name, exact)
        held.append(acquire(run_dir / LOCK, f"another process is training in {run_dir}: wait for it, or stop it"))
        if resume:
            clean(run_dir)
        elif name := launch():
            write_text(run_dir / LAUNCH, name + "\n")
        return run_dir

    run_dir = distributed.on_main(take)
    try:
        yield run_dir
    except (NextEmbedError, KeyboardInterrupt):
        if held and not resume and not (run_dir / "config.yaml").exists():
            _undo(run_dir)
        raise
    finally:
        for lock in held:
            lock.close()


def launch() -> str:
    """The id of the launch of this process (`torchrun --rdzv-id`); "" outside of one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


def begun_by_launch(folder: Path, same: Callable[[Path], bool]) -> Path | None:
    """The newest run, NAME or NAME-2, ..., that this launch started and has not finished, with a checkpoint to resume
    from: for restarts by `torchrun` after a process was lost. same: whether a run has the same settings."""
    name = launch()
    found = []
    for run_dir in folder.parent.glob(f"{glob.escape(folder.name)}*") if name else ():
        with contextlib.suppress(OSError, NextEmbedError):
            began = (run_dir / LAUNCH).read_text(encoding="utf-8").strip() == name
            is_open = not (run_dir / "report.html").exists() and last_checkpoint(run_dir) is not None
            if began and is_open and same(run_dir):
                found.append(run_dir)
    return max(found, key=lambda run_dir: (run_dir / LAUNCH).stat().st_mtime_ns, default=None)


def _undo(run_dir: Path) -> None:
    """Removes the files of this process, and the folder if it is then empty."""
    for name in BEFORE_TRAINING:
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()
