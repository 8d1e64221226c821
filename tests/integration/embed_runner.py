"""Embeds a source once without interruption, and once in children that are killed after the given number of parts.

python embed_runner.py CHECKPOINT SOURCE STREAMING WHOLE.parquet OUTPUT.parquet PARTS PARTS ...
It forks, because imports in each child would take most of the time of the test.
"""

import os
import signal
import sys
import time
from pathlib import Path

from nextembed import ImageData, embed


def child(checkpoint: str, source: str, streaming: bool, output: Path, kill_at: int | None) -> int:
    """The exit code of a child that embeds, writing a part per batch."""
    pid = os.fork()
    if pid == 0:
        data = ImageData(source=source, streaming=streaming)
        place = {"layer": 1, "pooling": "mean", "attention": "causal", "weights": "raw"}

        def report(*_: object) -> None:
            """Slows the child down, so that it can be killed in time on a busy machine."""
            if kill_at:
                late = len(list(Path(f"{output}.parts").glob("part-*.parquet"))) > kill_at + 1
                time.sleep(60 if late else 0.1)

        embed(
            checkpoint, data, output, batch_size=4, part_seconds=0, report=report, num_workers=1, limit=58, **place
        )  # fmt: skip
        os._exit(0)
    parts = Path(f"{output}.parts")
    while kill_at:
        if len(list(parts.glob("part-*.parquet"))) >= kill_at:
            os.kill(pid, signal.SIGKILL)
            break
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended before it was killed"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(checkpoint: str, source: str, streaming: str, whole: str, output: str, *kills: str) -> None:
    settings = checkpoint, source, streaming == "True"
    assert child(*settings, Path(whole), None) == 0
    for kill in kills:
        assert child(*settings, Path(output), int(kill)) == -signal.SIGKILL
        assert not Path(output).exists()
    assert child(*settings, Path(output), None) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
