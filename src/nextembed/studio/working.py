"""Long work that shows what it has so far, and can be stopped: it runs in a thread, one at a time."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
IDLE = 0.25  # seconds
MODEL = threading.Lock()  # held by whatever uses a model, until it has really ended


class Stopped(Exception):
    """Raised inside work that was stopped."""


class Work(Generic[T]):
    """The interface of work to the page: `show` and `check` raise `Stopped` once it was stopped."""

    def __init__(self) -> None:
        self.parts: queue.Queue[tuple[T] | BaseException | None] = queue.Queue()
        self.stop = threading.Event()

    def check(self, *_: object) -> None:
        """To be called often; takes and ignores what callbacks are called with."""
        if self.stop.is_set():
            raise Stopped

    def show(self, part: T) -> None:
        """Hands over what there is so far."""
        self.check()
        self.parts.put((part,))


def streamed(run: Callable[[Work[T]], object]) -> Iterator[T | None]:
    """The parts that work shows; None if nothing new came for a while, because a reader can only be stopped between two
    parts. Closing this iterator stops the work; errors of the work are raised here."""
    work = Work[T]()

    def body() -> None:
        try:
            with MODEL:
                work.check()
                run(work)
            work.parts.put(None)
        except Stopped:
            work.parts.put(None)
        except BaseException as err:
            work.parts.put(err)

    threading.Thread(target=body, daemon=True).start()
    try:
        while True:
            try:
                part = work.parts.get(timeout=IDLE)
            except queue.Empty:
                yield None
                continue
            if part is None:
                return
            if isinstance(part, BaseException):
                raise part
            yield part[0]
    finally:
        work.stop.set()
