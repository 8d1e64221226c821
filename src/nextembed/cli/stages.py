"""Runs that start from others: the stages to train first, their estimated times, and their training."""

import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.terminal import print

if TYPE_CHECKING:
    from ..runs import RunConfig


def say_stages(chain: Sequence["RunConfig"], overrides: Sequence[str]) -> None:
    """Prints the stages on the main rank, then the measured time of each. chain: the missing stages, and the requested
    run. Raises what `fit` raises before its first step.
    """
    from ..core import distributed

    total, last = len(chain), chain[-1]
    if distributed.is_main():
        print(f"{last.name} starts from runs that do not exist yet; {total} stages are trained in this order:")
        for number, stage in enumerate(chain, 1):
            print(f"  {number} of {total}  {stage.name}: {length(stage)}")
        if overrides:
            print(f"The settings of this command ({' '.join(overrides)}) apply to {last.name} only.")
        sys.stdout.flush()
    distributed.start(chain[0].train.device)
    if distributed.world_size() == 1:
        say_times(chain)


def say_times(chain: Sequence["RunConfig"]) -> None:
    """An estimate for each stage, from a few passes of an untrained model over one batch."""
    from ..recipes.stage_times import stage_seconds
    from ..training.banner import minutes

    print("Estimated time of each stage on this machine, from single steps (without probes and reports):", flush=True)
    total, known, began = len(chain), [], time.monotonic()
    for number, (stage, seconds) in enumerate(zip(chain, stage_seconds(chain)), 1):
        known.append(seconds)
        said = "unknown until the previous stage is trained" if seconds is None else minutes(seconds)
        print(f"  {number} of {total}  {stage.name}: {said}", flush=True)
    if None not in known:
        whole = minutes(sum(seconds or 0 for seconds in known))
        print(f"  together {whole} (measuring took {time.monotonic() - began:.0f} s)", flush=True)


def length(config: "RunConfig") -> str:
    """ "800 steps of 16" or "3 epochs"."""
    train = config.train
    return f"{train.max_steps:,} steps of {train.batch_size}" if train.max_steps else f"{train.epochs:g} epochs"


def train_stages(stages: Sequence["RunConfig"]) -> None:
    """Trains the stages before a run. After Ctrl-C, a message says that the same command resumes the chain."""
    from ..core import distributed
    from ..run import fit_stage
    from ..training.watch import Interrupted

    for number, stage in enumerate(stages, 1):
        if distributed.is_main():
            print(f"Stage {number} of {len(stages) + 1}: {stage.name}", flush=True)
        try:
            fit_stage(stage)
        except Interrupted as stopped:
            words = " ".join(shlex.quote(word) for word in sys.argv[1:])
            raise Interrupted(
                f"stopped and saved in stage {number} of {len(stages) + 1}; to resume, run the same command "
                f"again: nextembed {words}",
                stopped.exit_code - 128,
            ) from None
