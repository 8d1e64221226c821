"""Runs `nextembed train` in forked children, each in its own process group, and makes something go wrong in it.

python signal_runner.py FOLDER SCENARIO ...   prints {scenario: [exit code, last line, remaining processes]}
It forks, because imports in each child would take most of the time.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from nextembed import runs
from nextembed.cli import main
from nextembed.data.stream import MapStream
from nextembed.tasks import Pretraining

warnings.filterwarnings("ignore", category=DeprecationWarning)  # warnings about forks
WORDS = ["nepa_demo_tiny", "data.num_workers=2", "data.cache=off", "train.device=cpu", "train.trackers=[]",
         "probe.enabled=false", "train.log_steps=10", "train.max_steps=25", "train.save_steps=1000"]  # fmt: skip
PATIENCE = 60  # seconds, enough for a busy machine


def in_batch(number, action):
    """Runs `action` in the worker before it reads batch `number`."""
    read = MapStream.batch

    def batch(self, begin, following):
        if begin == number * self.loading.micro_batch_size:
            action()
        return read(self, begin, following)

    MapStream.batch = batch


def to_group(signum):
    return lambda: os.killpg(0, signum)


def hang():
    """Makes a worker hang. The main process must save and exit without its batch, and end the worker; otherwise a
    second signal finds it waiting."""
    main_process = os.getppid()
    os.killpg(0, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while os.getppid() == main_process and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(0, signal.SIGTERM)
    time.sleep(1000)


def probing(*waits):
    """Sends SIGTERM to the group during a probe of the main process, once after each wait."""

    def probe(backbone):
        for wait in waits:
            time.sleep(wait)
            os.killpg(0, signal.SIGTERM)
        return {"probe/knn": 0.5}

    Pretraining.quick = lambda *args: probe


SCENARIOS = {
    "term": lambda: in_batch(15, to_group(signal.SIGTERM)),
    "ctrl_c": lambda: in_batch(15, to_group(signal.SIGINT)),
    "term_two_at_once": lambda: in_batch(15, lambda: (to_group(signal.SIGTERM)(), to_group(signal.SIGTERM)())),
    "term_while_probing": lambda: probing(0),
    "term_twice_while_probing": lambda: probing(0, 1.3),
    "term_twice_while_a_worker_hangs": lambda: in_batch(15, hang),
    "worker_killed": lambda: in_batch(15, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "worker_crashed": lambda: in_batch(15, lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "main_killed": lambda: in_batch(15, lambda: os.kill(os.getppid(), signal.SIGKILL)),
    "whole": lambda: None,
}


def started(folder: Path, scenario: str) -> int:
    """The process id, which is also the group id, of a run."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with (folder / f"{scenario}.txt").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    name, _, resume = scenario.partition("+")
    if resume:
        sys.exit(main(["train", "--resume", str(folder / name)]))
    SCENARIOS[name]()
    probes = ["train.probe_steps=10"] if "probing" in name else ["train.probe_steps=null"]
    sys.exit(main(["train", *WORDS, *probes, f"output_dir={folder}", f"name={name}"]))


def left(group: int) -> int:
    """The number of live processes in the group."""
    listed = subprocess.check_output(["ps", "-eo", "pgid,stat"], text=True).splitlines()[1:]
    return sum(int(line.split()[0]) == group and line.split()[1][0] != "Z" for line in listed)


def result(folder: Path, scenario: str, pid: int) -> list:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end = time.monotonic() + PATIENCE  # workers check every five seconds whether their parent is alive
    while left(pid) and time.monotonic() < end:
        time.sleep(0.1)
    text = (folder / f"{scenario}.txt").read_text().replace("\0", "")  # torch ends its own message with one
    said = text.strip().splitlines() or [""]
    return [code, next((line for line in said if line.startswith("nextembed:")), said[-1]), left(pid)]


if __name__ == "__main__":
    where, names = Path(sys.argv[1]), sys.argv[2:]
    runs.Run.report = lambda *args: None
    gc.freeze()  # excludes imported modules from garbage collection
    found = {}
    for again in (False, True):  # scenarios that resume a run come after it
        pids = {name: started(where, name) for name in names if ("+" in name) is again}
        found |= {name: result(where, name, pid) for name, pid in pids.items()}
    print(json.dumps(found))
