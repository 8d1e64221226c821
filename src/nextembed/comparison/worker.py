"""python -m nextembed.comparison.worker JOB.json: runs one job. An error is written to error.json next to it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from ..core.code import allow_code
from ..core.files import write_json
from ..core.saved import load
from ..errors import NextEmbedError
from .jobs import Job, work

ERROR = "error.json"


def main(file: str) -> int:
    threading.Thread(target=leave_with, args=(os.getppid(),), daemon=True).start()
    job = load(Job, Path(file))
    for one in job.code:
        allow_code(one)
    try:
        work(job)
    except NextEmbedError as err:
        write_json(Path(file).with_name(ERROR), {"message": str(err), "exit_code": err.exit_code})
        return err.exit_code
    return 0


def leave_with(parent: int) -> None:
    """The parent has ended: the process saves and stops."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
