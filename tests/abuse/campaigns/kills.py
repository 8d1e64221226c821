"""Runs that are killed at any moment and resumed end with bit-identical weights; runs that are started or resumed at
the same time do not interfere."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import yaml

from . import tiny
from .box import Box, Case, fault, wait

MINUTES, SECONDS = 4, 60
STEPS, KILLS = 6, 5
SIGNALS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}


def words(fixtures: Path, folder: Path, seed: int = 0, workers: int = 0) -> list[str]:
    more = ["train.save_steps=1", "train.keep_checkpoints=3", "train.ema_decay=0.9", f"data.num_workers={workers}"]
    return tiny.words(fixtures / "images", STEPS, *more, f"output_dir={folder}", "name=run", f"seed={seed}")


def prepare(folder: Path) -> None:
    tiny.images(folder / "images")
    begin = time.monotonic()
    for seed in (0, 1):
        assert wait(start(words(folder, folder / f"seed-{seed}", seed), folder / "said"), 120) == 0
    (folder / "seconds").write_text(str((time.monotonic() - begin) / 2))


def start(line: list[str], log: Path) -> int:
    """The process id, which is also the group id, of a command."""
    from nextembed.cli import main

    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the first of both processes makes the group
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        tiny.without_report()
        code = main(line)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def strike(pid: int, run: Path, rng: Random, seconds: float) -> str | None:
    """Ends a run by a signal to it or its group; returns what went wrong, if anything."""
    number, to_group = rng.choice(list(SIGNALS)), rng.random() < 0.5
    moment, delay = rng.choice(["beginning", "saving", "saving", "any", "any"]), rng.random()
    begin = time.monotonic()
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        passed = time.monotonic() - begin
        saving = moment == "saving" and passed > delay * seconds and half_written(run)
        if saving or (moment == "any" and passed > delay * seconds) or passed > 3 * seconds:
            break
        if moment == "beginning" and run.exists():
            time.sleep(0.3 * delay**3 * seconds)
            break
    (os.killpg if to_group else os.kill)(pid, number)
    code = wait(pid, 60)
    if code is None:
        return f"continues after {number.name}"
    return None if code in (0, *SIGNALS[number]) else f"exit code {code} after {number.name}, {moment}"


def half_written(run: Path) -> bool:
    names = [name for where in (run, run / "checkpoints") if where.is_dir() for name in os.listdir(where)]
    return any(name.startswith(".") and "lock" not in name for name in names)


def finished(run: Path, reference: Path) -> str | None:
    """The fault of a finished run."""
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if lines != list(range(1, STEPS + 1)):
        return f"metrics.jsonl has the steps {lines}"
    left = [name for name in os.listdir(run / "checkpoints") if not re.fullmatch(r"step-\d{6}", name)]
    return f"left behind: {left[0]}" if left else tiny.same_weights(run, reference)


def killed(box: Box, workers: int) -> str | None:
    run, log = box.folder / "runs" / "run", box.folder / "said"
    seconds = float((box.fixtures / "seconds").read_text())
    for number in range(KILLS + 1):
        config = run / "config.yaml"
        if config.exists() and not config.read_text().strip():
            return "config.yaml is empty"
        again = config.exists()
        if run.exists() and not again:  # killed before its start: a new run uses another folder
            run.rename(run.with_name(f"killed-{number}"))
        line = ["train", "--resume", str(run)] if again else words(box.fixtures, box.folder / "runs", workers=workers)
        pid = start(line, log)
        if number < KILLS:
            if why := strike(pid, run, box.rng, seconds):
                return f"{why}: {log.read_text()[-200:]}"
        elif (code := wait(pid, 120)) != 0:
            return f"exit code {code} of the last resume: {log.read_text()[-200:]}"
    return finished(run, box.fixtures / "seed-0" / "run")


def two_starts(box: Box) -> str | None:
    pids = []
    for seed in (0, 1):
        pids.append(start(words(box.fixtures, box.folder / "runs", seed), box.folder / f"said-{seed}"))
        time.sleep(box.rng.choice([0, 0, 0.01, 0.3]))
    if codes := [code for pid in pids if (code := wait(pid, 120)) != 0]:
        return f"exit code {codes[0]}"
    runs = sorted((box.folder / "runs").iterdir())
    if [run.name for run in runs] != ["run", "run-2"]:
        return f"{len(runs)} folders for two runs"
    seeds = [yaml.safe_load((run / "config.yaml").read_text())["seed"] for run in runs]
    if sorted(seeds) != [0, 1]:
        return f"configs of seeds {seeds}"
    found = [finished(run, box.fixtures / f"seed-{seed}" / "run") for run, seed in zip(runs, seeds)]
    return found[0] or found[1]


def two_resumes(box: Box) -> str | None:
    run, logs = box.folder / "runs" / "run", [box.folder / f"said-{i}" for i in (0, 1)]
    pid = start(words(box.fixtures, box.folder / "runs"), box.folder / "said")
    end = time.monotonic() + 60
    while not (run / "checkpoints" / "step-000002").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(pid, 9)
    wait(pid, 10)
    pids = [start(["train", "--resume", str(run)], log) for log in logs]
    codes = [wait(pid, 120) for pid in pids]
    for code, log in zip(codes, logs):
        if code and (why := fault(code, "\n".join(log.read_text().splitlines()[-1:]), (2,))):
            return why
    if codes == [2, 2]:
        return "neither has resumed"
    return finished(run, box.fixtures / "seed-0" / "run")


def second_fails(box: Box) -> str | None:
    runs = box.folder / "runs"
    first = start(words(box.fixtures, runs), box.folder / "said")
    time.sleep(box.rng.random() * float((box.fixtures / "seconds").read_text()) * 0.7)
    second = start([*words(box.fixtures, runs), "data.label_column=nope"], box.folder / "said-2")
    codes = [wait(pid, 120) for pid in (first, second)]
    if codes != [0, 2]:
        return f"exit codes {codes}"
    if len(found := os.listdir(runs)) != 1:
        return f"{len(found)} folders where one run is"
    return finished(runs / found[0], box.fixtures / "seed-0" / "run")


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for number in range(20):
        workers = 2 * (number % 3 == 0)
        yield f"{KILLS} kills, {workers} workers, {number}", lambda box, workers=workers: killed(box, workers)
    for number in range(3):
        yield f"two starts {number}", two_starts
        yield f"two resumes {number}", two_resumes
        yield f"a second start that fails {number}", second_fails
