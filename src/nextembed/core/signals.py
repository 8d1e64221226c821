"""Ctrl-C and SIGTERM: training saves and stops, every other command tidies up; data workers leave both to the main
process, which outlives none of them."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM)
ONE = 1.0  # seconds in which signals count as one: `timeout` and some launchers send theirs to a group and a process


class StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after the running step; a second one stops at once.

    Use as a context around training. received: the signal, or 0.
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
    """SIGTERM ends a command as Ctrl-C does, so that half-written files go and what is done is kept.

    Use as a context around a command. exit_code: what the command returns if it was stopped.
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
    """Ctrl-C and SIGTERM wait until the block ends. Processes begun in it hold them back, too, until each calls
    `left_to_parent`: there is no moment at which one of the two would end a worker."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def left_to_parent() -> None:
    """In a data worker: Ctrl-C and SIGTERM, which reach all processes of a terminal, a group or a service, are for the
    main process, which saves with this worker's batches and then ends it."""
    for signum in STOP:
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def kill_workers() -> None:
    """Ends all data workers at once. To be registered with atexit after they begin, so that it comes before what
    multiprocessing does at exit: a SIGTERM, which they ignore, and waiting for them."""
    import multiprocessing

    with contextlib.suppress(ValueError, AttributeError):  # torch's handler would raise an error for each
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
