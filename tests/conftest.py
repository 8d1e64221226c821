"""What every test runs under: the processor is shared out among the workers of pytest-xdist, and what was imported is
left out of garbage collection (each run of the trainer starts with one, which would else look through all of it)."""

import gc
import os

# No test looks anything up on a hub: without a network each would wait for its retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Read when torch starts, here and in the processes that tests start: workers do not take cores from each other.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, cores // workers)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
