"""The script of each rank in the test of two machines; rank 1 is killed during a step of the first attempt.

torchrun --nnodes 2 ... elastic_runner.py CONFIG.yaml KILL_STEP MARKER
"""

import os
import signal
import sys
from pathlib import Path

from nextembed import run
from nextembed.core.config import from_yaml
from nextembed.training.loop import Loop

if __name__ == "__main__":
    config = from_yaml(run.RunConfig, Path(sys.argv[1]).read_text())
    step, marker = int(sys.argv[2]), Path(sys.argv[3])
    if os.environ["RANK"] == "1" and not marker.exists():
        update = Loop.update

        def killed(self, *args):
            if self.step == step:
                marker.write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])
                os.kill(os.getpid(), signal.SIGKILL)
            return update(self, *args)

        Loop.update = killed
    run.fit(config)
