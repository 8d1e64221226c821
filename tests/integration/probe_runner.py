"""The script of two forked ranks: python probe_runner.py probe RUN OUT.json | wait | fail."""

import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist
from rank_runner import fork_ranks
from torch.distributed import distributed_c10d

from nextembed.core import distributed
from nextembed.errors import DataError
from nextembed.runs import open_run
from nextembed.tasks.pretraining import probe


def wait() -> None:
    """One rank takes longer than the timeout of the process group."""
    assert distributed.on_main(lambda: time.sleep(4) or "done") == "done"
    found = distributed.together(lambda: time.sleep(4 * (distributed.rank() == 1)) or distributed.rank())
    assert found == int(os.environ["RANK"])


def fail() -> None:
    """An error on one rank is raised on all, and then they continue together."""

    def read() -> int:
        if distributed.rank() == 1:
            raise DataError("rank 1 cannot read")
        return 0

    try:
        distributed.together(read)
    except DataError as err:
        assert "rank 1 cannot read" in str(err)
    else:
        raise AssertionError("it continued")
    assert distributed.gather_objects(distributed.rank()) == [0, 1]


if __name__ == "__main__":
    fork_ranks(2)
    what, *words = sys.argv[1:]
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    distributed.patient_group()  # as in `distributed.start`
    if what == "wait":  # only now, as initialisation may take longer on a busy machine
        distributed_c10d._set_pg_timeout(timedelta(seconds=2), dist.group.WORLD)
    if what == "probe":
        table = probe(open_run(words[0]), all_ranks=True)
        if distributed.is_main():
            table.save(words[1])
    else:
        {"wait": wait, "fail": fail}[what]()
    distributed.wait()
    distributed.stop()
