"""Set-up for all tests: pytest-xdist workers share the CPU cores, and imported modules are frozen out of garbage
collection (each trainer run starts with a collection, which would otherwise scan all of them)."""

import gc
import os

# Tests never query the hub: without a network, each lookup would wait for its retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # torch reads this at start-up, here and in subprocesses of tests; it keeps workers from competing for cores.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, cores // workers)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
