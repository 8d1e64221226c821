"""Handling of Ctrl-C and SIGTERM: training saves and stops, every other command cleans up; data workers leave both to
the main process and end before it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM)
ONE = 1.0  # signals within these seconds count as one: `timeout` and some launchers signal both a group and a process


class StopSignals:
    """Context around training: Ctrl-C or SIGTERM stops it after the current step, a second one at once. received: the
    signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        with contextlib.suppress(ValueError):  # not the main thread: the program that called us handles its signals
            for signum in STOP:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: object) -> None:
        if not self.received:
            self.received, self._first = signum, time.monotonic()
        elif time.monotonic() - self._first > ONE:
            kill_workers()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


class TidyStop:
    """Context around a command: SIGTERM ends it like Ctrl-C, so that half-written files are removed and finished ones
    kept. exit_code: what the command returns if it was stopped.
    """

    def __init__(self) -> None:
        self.exit_code = 128 + signal.SIGINT
        self._before: Any = None

    def __enter__(self) -> "TidyStop":
        with contextlib.suppress(ValueError):  # not the main thread
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, signum: int, frame: object) -> None:
        self.exit_code = 128 + signum
        raise KeyboardInterrupt


# -- data workers


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM are blocked until the block ends. Processes started in it inherit this until each calls
    `left_to_parent`, so that neither signal can ever end a worker."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def left_to_parent() -> None:
    """Ignores Ctrl-C and SIGTERM in a data worker. Both reach all processes of a terminal, group or service; the main
    process handles them, saves with this worker's batches and then ends it."""
    for signum in STOP:
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def kill_workers() -> None:
    """Ends all data workers at once. Registered with atexit after they are started, so that it runs before
    multiprocessing's own exit handler, which sends SIGTERM (they ignore it) and waits."""
    import multiprocessing

    with contextlib.suppress(ValueError, AttributeError):  # torch's handler would raise an error for each
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
