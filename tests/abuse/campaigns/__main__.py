"""Long fuzzing campaigns against the library: python -m tests.abuse.campaigns [NAME ...] (see `make abuse`).

Each module here is a campaign: `cases(fixtures, rng)` yields names and checks; a check returns None or the reason of
its failure. `prepare(folder)` makes shared fixtures. Cases run in a forked process, in an order given by the seed,
until the time is over. A case fails if it ends the process, hangs or exceeds the limits; then the next one is run.
"""

import argparse
import importlib
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

NAMES = ["kills", "checkpoints", "images", "media", "rows", "shards", "commands", "report", "settings", "trust"]
# Defaults for campaigns: minutes at most, and CPU seconds and memory per case.
MINUTES, SECONDS, MIB = 2, 20, 600


def surroundings() -> Path:
    """A scratch folder for caches, the home folder and temporary files; network access is disabled."""
    scratch = Path(tempfile.mkdtemp(prefix="nextembed-abuse-")).resolve()
    for name in ("home", "tmp"):
        (scratch / name).mkdir()
    os.environ |= {"HOME": f"{scratch}/home", "TMPDIR": f"{scratch}/tmp", "HF_HOME": f"{scratch}/home/hf",
                   "XDG_CACHE_HOME": f"{scratch}/home/cache", "MPLCONFIGDIR": f"{scratch}/home", "HF_HUB_OFFLINE": "1",
                   "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}  # fmt: skip
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = "http://127.0.0.1:9"
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    return scratch


def forked(scratch: Path, work: Any) -> int:
    """The id of a child in its own process group, which does the work and writes its output to scratch/said."""
    from .box import guard

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(scratch / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        guard(scratch)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tried(module: ModuleType, cases: list[Any], seed: str, scratch: Path, tell: int, keep: bool) -> None:
    """Runs cases in sequence and reports the number and result of each."""
    from .box import Box, outside, remove

    for number, name, check in cases:
        folder = scratch / f"case-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        box = Box(f"{seed} {name}", folder, scratch / "fixtures", scratch / "said")
        try:
            why = check(box)
        except Exception as err:
            where = traceback.extract_tb(err.__traceback__)[-1]
            why = f"{type(err).__name__}: {err} ({Path(where.filename).name}:{where.lineno})"
        why = why or ("outside the scratch folder: " + "; ".join(outside[:3]) if outside else None)
        took = time.process_time() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
        if took > getattr(module, "SECONDS", SECONDS):
            why = why or f"took {took:.0f} s of processor"
        if grown > getattr(module, "MIB", MIB):
            why = why or f"took {grown} MiB of memory"
        if not keep:
            remove(folder)
        os.write(tell, (json.dumps([number, why]) + "\n").encode())


def campaign(
    name: str, seed: int, minutes: float | None, only: str | None, scratch: Path
) -> tuple[int, dict[str, str]]:
    """The number of cases run, and the reasons of failures."""
    module = importlib.import_module(f"{__package__}.{name}")
    fixtures = scratch / "fixtures"
    fixtures.mkdir()
    if hasattr(module, "prepare"):
        code = os.waitstatus_to_exitcode(os.waitpid(forked(scratch, lambda: module.prepare(fixtures)), 0)[1])
        if code:
            raise SystemExit(f"{name}: its fixtures could not be made\n{(scratch / 'said').read_text()[-3000:]}")
    listed = list(module.cases(fixtures, Random(f"{seed} {name}")))
    assert len({case for case, _ in listed}) == len(listed), f"{name}: two cases with the same name"
    Random(f"{seed} order").shuffle(listed)
    todo = [(number, *case) for number, case in enumerate(listed) if only in (None, case[0])]
    end = time.monotonic() + 60 * (minutes or getattr(module, "MINUTES", MINUTES))
    failed, count = {}, 0
    longest = 3 * getattr(module, "SECONDS", SECONDS)
    while todo and time.monotonic() < end:
        read, tell = os.pipe()
        batch = todo[:200]  # a new process after 200 cases
        pid = forked(scratch, lambda: tried(module, batch, f"{seed} {name}", scratch, tell, keep=only is not None))  # noqa: B023
        os.close(tell)
        with os.fdopen(read) as lines:
            for number, case, _ in batch:
                if time.monotonic() > end:
                    break
                line = lines.readline() if select.select([lines], [], [], longest)[0] else "hangs"
                why = f"hangs: more than {longest} s" if line == "hangs" else "ends the process"
                if line.startswith("["):
                    found, why = json.loads(line)
                    assert found == number
                todo, count = todo[1:], count + 1
                if why:
                    failed[case] = why
                if not line.startswith("["):
                    break
        with_group(pid)
        if failed and (case := list(failed)[-1]) and failed[case] == "ends the process":
            said = (scratch / "said").read_text(errors="replace").strip().splitlines() or [""]
            failed[case] += f": {said[-1][:200]}"
    if only:
        print((scratch / "said").read_text(errors="replace"))
        print(f"folder: {scratch}/case-...")
    shutil.rmtree(fixtures)
    return count, failed


def with_group(pid: int) -> None:
    """Ends a child and all processes that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def kinds(failed: dict[str, str]) -> dict[str, list[str]]:
    """Failed cases grouped by reason, ignoring names and numbers."""
    found: dict[str, list[str]] = {}
    for case, why in failed.items():
        found.setdefault(re.sub(r"/\S+|'[^']*'|0x\w+|\d+", "*", why)[:70], []).append(case)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.campaigns", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, help="maximum per campaign (default: 2 to 4, set by each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="run only this case and keep its folder")
    options = parser.parse_args()
    if wrong := sorted({*options.names} - {*NAMES}):
        parser.error(f"no campaign {wrong[0]}; there are {', '.join(NAMES)}")
    scratch = surroundings()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    table, said = [], []
    for name in options.names or NAMES:
        begin = time.monotonic()
        count, failed = campaign(name, options.seed, options.minutes, options.case, scratch)
        table.append((name, count, count - len(failed), len(failed), f"{(time.monotonic() - begin) / 60:.1f}"))
        print("{:12} {:>6} tried {:>6} held {:>6} failed   {:>5} minutes".format(*table[-1]), flush=True)
        for like in kinds(failed).values():
            more = f"   ({len(like)} similar)" if len(like) > 1 else ""
            again = f"python -m tests.abuse.campaigns {name} --seed {options.seed} --case {shlex.quote(like[0])}"
            said.append(f"{name}: {failed[like[0]]}{more}\n    {again}")
    for text in said:
        print(f"\n{text}")
    print(f"\n{'campaign':12} {'tried':>6} {'held':>6} {'failed':>6} {'minutes':>7}")
    for row in table:
        print("{:12} {:>6} {:>6} {:>6} {:>7}".format(*row))
    if not options.case:
        shutil.rmtree(scratch)
    return int(any(row[3] for row in table))


if __name__ == "__main__":
    sys.exit(main())
