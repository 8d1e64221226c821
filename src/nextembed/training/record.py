"""A run's record of its settings and environment."""

import contextlib
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from ..core import distributed
from ..core.config import Config, to_yaml
from ..core.files import write_json, write_text
from ..core.run_folder import DataCounts


def write_settings(run_dir: Path, config: Config, seed: int, trained: tuple[int, int], data: DataCounts) -> None:
    """Writes config.yaml with the current settings, and environment.json from the start of the run."""

    def write() -> None:
        write_text(run_dir / "config.yaml", to_yaml(config))
        if not (run_dir / "environment.json").exists():
            write_json(run_dir / "environment.json", environment(seed, trained, data))

    distributed.on_main(write)


def environment(seed: int, trained: tuple[int, int], data: DataCounts) -> dict[str, object]:
    """The environment: versions, machine, git commit of the current folder; trained parameters and amount of data.
    trained: number of trained parameters, and of all.
    """
    versions = {}
    for name in ("nextembed", "torch", "torchvision", "transformers", "accelerate", "datasets", "numpy", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or not a repository
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL).strip()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": versions,
        "python": sys.version.split()[0],
        "torch_build": torch.__config__.show().splitlines(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "ranks": distributed.world_size(),
        "git_commit": commit,
        "seed": seed,
        "parameters": {"trained": trained[0], "all": trained[1]},
        "data": asdict(data),
        "command": sys.argv,
    }
