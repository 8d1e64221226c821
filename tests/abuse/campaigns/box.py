"""The environment of a case: its own random generator, an empty folder, captured output, and the command line."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

WRITES = {"os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.mkdir": 1, "os.truncate": 1, "os.symlink": 2, "os.link": 2,
          "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip


class Box:
    """The environment of one case. folder: the empty current folder. fixtures: the read-only result of `prepare`."""

    def __init__(self, seed: str, folder: Path, fixtures: Path, said: Path):
        self.rng, self.folder, self.fixtures, self._said = Random(seed), folder, fixtures, said
        folder.mkdir()
        os.chdir(folder)
        self.said()
        outside.clear()

    def said(self) -> str:
        """The output on stdout and stderr since the last call, including that of C libraries."""
        sys.stdout.flush()
        sys.stderr.flush()
        text = self._said.read_bytes().decode(errors="replace")
        os.truncate(self._said, 0)
        return text

    def command(self, *words: str) -> tuple[int, str]:
        """The exit code and the output of a command line, run in this process."""
        from nextembed.cli import main

        self.said()
        try:
            code = main(list(words))
        except SystemExit as err:
            code = err.code if isinstance(err.code, int) else 1
        return code, self.said()

    def one_line(self, *words: str, codes: Iterable[int] = (0, 1, 2)) -> str | None:
        """The fault of a command that neither succeeds nor ends with a useful one-line error; None if it is fine."""
        return fault(*self.command(*words), codes)


Case = tuple[str, Callable[[Box], str | None]]


def fault(code: int, said: str, codes: Iterable[int] = (0, 1, 2)) -> str | None:
    """The fault of a finished command: another exit code, a traceback, an "unexpected ..." or not exactly one line."""
    lines = [line for line in said.splitlines() if line.startswith("nextembed: ")]
    last = (lines or said.strip().splitlines() or ["nothing"])[-1][:300]
    if "Traceback (most recent call last)" in said or "nextembed: unexpected" in said:
        return f"exit code {code}: {last}"
    if code not in codes:
        return f"exit code {code}: {last}"
    if code and (len(lines) != 1 or not said.rstrip().endswith(lines[0])):
        return f"exit code {code} without one line: {said.strip()[-300:]!r}"
    if "[y/N]" in said:
        return "asked whether to run code"
    return None


# -- the process of a campaign


outside: list[str] = []  # attempts to write or remove outside the scratch folder


def guard(scratch: Path) -> None:
    """Prevents Python code in this process and its children from writing or removing anything outside `scratch`, and
    limits memory."""
    for kind, limit in ((resource.RLIMIT_DATA, 8 << 30), (resource.RLIMIT_FSIZE, 2 << 30), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    inside = (f"{scratch}/", "/dev/", "/proc/")

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)):
                return
            paths = [path]
        elif event in WRITES:
            paths = list(args[: WRITES[event]])[-1:] if "link" in event else list(args[: WRITES[event]])
        else:
            return
        for path in paths:
            if isinstance(path, int) or not path:
                continue
            text = os.fsdecode(path)
            if any(isinstance(one, int) and one > 2 for one in args[1:]) and event != "open" and text[0] != "/":
                continue  # relative to an open folder, whose `rmtree` was already checked
            folder, name = os.path.split(os.path.abspath(text))
            real = os.path.realpath(text) if event == "open" else os.path.join(os.path.realpath(folder), name)
            if event == "os.mkdir" and os.path.isdir(real):
                continue
            if not real.startswith(inside):
                outside.append(f"{event} {real}")
                raise PermissionError(13, "outside the scratch folder", text)

    sys.addaudithook(look)


def remove(folder: Path) -> None:
    os.chdir(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child; None if it had to be killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None
