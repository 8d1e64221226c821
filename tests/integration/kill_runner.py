"""Runs `fit` in forked children, killed with SIGKILL at given steps and resumed, until the run is finished.

python kill_runner.py OUTPUT_DIR step:event step:event ... -- OUTPUT_DIR step:event ...
Each folder contains its config.yaml. It forks, because imports in each child would take most of the time.
"""

import os
import signal
import sys
from pathlib import Path

from nextembed import run
from nextembed.core.config import from_yaml
from nextembed.training import checkpoint
from nextembed.training.loop import Loop


def kill_at(step: int, event: str) -> None:
    """Kills this process when the loop calls the method `event` in that step; with "write", while its checkpoint is
    half written."""
    if event == "write":
        write = checkpoint.write_model

        def half(folder, *args):
            write(folder, *args)
            if f"step-{step:06d}" in str(folder):
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.write_model = half
        return
    method = getattr(Loop, event)

    def killed(self, *args):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args)

    setattr(Loop, event, killed)


def child(config: run.RunConfig, resume: Path | None, kill: str | None) -> int:
    pid = os.fork()
    if pid == 0:
        if kill:
            step, event = kill.split(":")
            kill_at(int(step), event)
        run.fit(config, resume)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(output_dir: str, *kills: str) -> None:
    config = from_yaml(run.RunConfig, (Path(output_dir) / "config.yaml").read_text())
    config = config.model_copy(update={"output_dir": output_dir})
    resume = None
    for kill in (*kills, None):
        code = child(config, resume, kill)
        assert code == (-signal.SIGKILL if kill else 0), f"{kill}: exit code {code}"
        resume = Path(output_dir) / config.name


if __name__ == "__main__":
    words = sys.argv[1:]
    while "--" in words:
        end = words.index("--")
        main(*words[:end])
        words = words[end + 1 :]
    main(*words)
