"""The script of each rank of a test:

torchrun --nproc-per-node=2 rank_runner.py CONFIG.yaml [RUN_TO_RESUME]
python rank_runner.py --ranks 2 CONFIG.yaml [RUN_TO_RESUME]

The second form forks the ranks with the environment of torchrun, because imports in each rank would take most of the
time of the test.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from nextembed import run
from nextembed.core.config import from_yaml
from nextembed.errors import NextEmbedError


def fork_ranks(num: int) -> None:
    """Returns in each rank; the parent waits for them, ends the others if one fails, and exits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num}
    children = []
    for rank in range(num):
        pid = os.fork()
        if pid == 0:
            values = place | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
            os.environ.update({name: str(value) for name, value in values.items()})
            return
        children.append(pid)
    failed = 0
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if code := os.waitstatus_to_exitcode(status):
            failed = failed or code
            for other in children:
                os.kill(other, signal.SIGTERM)
    sys.exit(failed)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "--ranks":
        fork_ranks(int(words[1]))
        words = words[2:]
    config = from_yaml(run.RunConfig, Path(words[0]).read_text())
    try:
        run.fit(config, words[1] if len(words) > 1 else None)
    except NextEmbedError as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
