"""Runs jobs, one after another or in parallel, each in its own process; finished ones are skipped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO

import torch

from ..core.code import told
from ..core.files import write_json
from ..core.run_folder import read_lines
from ..core.saved import Count, load
from ..errors import ConfigError, TrainingError
from .jobs import Job, work
from .worker import ERROR

WAIT = 0.2  # seconds between looks
Watch = Callable[["State"], None]


@dataclass
class State:
    """The state of a job: "waits", "runs", "done"."""

    job: Job
    state: str = "waits"
    begun: float = 0.0

    def progress(self) -> dict[str, float]:
        """The last logged line of its training."""
        lines = read_lines(self.job.place / "run" / "metrics.jsonl")
        return lines[-1] if lines else {}


@dataclass
class Failure:
    """The error of a failed process."""

    message: str
    exit_code: Count = 1


@dataclass
class Pool:
    """Runs jobs. number: in parallel; 0 runs them one after another in this process. threads: of all together. watch:
    called when a job changes. tick: called while jobs run."""

    number: int
    threads: int
    watch: Watch
    tick: Callable[[], None]
    running: dict[int, tuple[State, "subprocess.Popen[bytes]"]] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job], side_by_side: bool = True) -> None:
        """Runs those that are not done. Raises ConfigError or TrainingError of the first that fails; the others are
        stopped and saved."""
        waiting = [State(job) for job in jobs if not job.result.is_file()]
        for state in waiting:
            state.job.place.mkdir(parents=True, exist_ok=True)
            (state.job.place / ERROR).unlink(missing_ok=True)
        if self.number == 0:
            for state in waiting:
                self.here(state)
            return
        places = self.number if side_by_side else 1
        try:
            while waiting or self.running:
                for place in [place for place in range(places) if place not in self.running][: len(waiting)]:
                    self.start(place, waiting.pop(0), places)
                time.sleep(WAIT)
                self.tick()
                for place, (state, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[place]
                        self.ended(state, process.returncode)
        finally:
            self.stop()

    def here(self, state: State) -> None:
        """Runs a job in this process; its output goes to its log."""
        state.state, state.begun = "runs", time.monotonic()
        self.watch(state)
        before = torch.get_num_threads()
        with logging_to(state.job) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            torch.set_num_threads(self.threads)
            try:
                work(state.job, alone=False)
            except ConfigError as err:
                raise type(err)(f"{state.job.row}: {err}") from None
            finally:
                torch.set_num_threads(before)
        state.state = "done"
        self.watch(state)

    def start(self, place: int, state: State, places: int) -> None:
        """Starts a process with its share of threads and its GPU."""
        threads = str(max(1, self.threads // places))
        # Threads that spin while they wait burn CPU time on a busy machine, which the budget would count.
        environment = (
            os.environ
            | told()
            | {
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "OMP_WAIT_POLICY": "PASSIVE",
            }
        )
        if torch.cuda.device_count() > 1 and places > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
        file = state.job.place / "job.json"
        write_json(file, asdict(state.job))
        words = [sys.executable, "-m", "nextembed.comparison.worker", str(file)]
        with logging_to(state.job) as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        state.state, state.begun = "runs", time.monotonic()
        self.running[place] = (state, process)
        self.watch(state)

    def ended(self, state: State, code: int) -> None:
        """Raises if it failed."""
        job = state.job
        if code == 0 and job.result.is_file():
            state.state = "done"
            self.watch(state)
            return
        if (file := job.place / ERROR).is_file():
            failed = load(Failure, file)
            if failed.exit_code > 128:  # after a signal
                raise TrainingError(f"{job.row}, seed {job.seed}: stopped and saved; the same command resumes")
            raise (ConfigError if failed.exit_code == 2 else TrainingError)(f"{job.row}: {failed.message}")
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            raise KeyboardInterrupt
        raise TrainingError(f"{job.row}, seed {job.seed}: its process ended with code {code}; see {job.place}/log.txt")

    def stop(self) -> None:
        """Processes that still run save and stop."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        self.running.clear()


@contextlib.contextmanager
def logging_to(job: Job) -> Iterator[IO[str]]:
    with (job.place / "log.txt").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"begins": job.do, "row": job.row, "seed": job.seed}) + "\n")
        log.flush()
        yield log
