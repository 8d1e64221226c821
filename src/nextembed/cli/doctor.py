"""`doctor`: machine, versions and extras."""

import os
import sys

from ..core.terminal import print
from .app import app


@app.command()
def doctor() -> None:
    """Show the machine, the versions and the installed extras.

    Each missing or broken package is a line with the command that installs it.

    \b
    Examples:
      nextembed doctor
      nextembed doctor > doctor.txt
    """
    print("\n".join(f"{name:14} {text}" for name, text in diagnosis()))


PACKAGES = ["nextembed", "torch", "torchvision", "transformers", "accelerate", "datasets", "pydantic"]
EXTRAS = {
    "wandb": ("wandb", "live curves on wandb.ai"),
    "trackio": ("trackio", "live curves, local"),
    "timm": ("finetune", "RandAugment; a reference model in benchmarks"),
    "peft": ("finetune", "LoRA"),
    "torchmetrics": ("segment", "mIoU"),
    "faiss-cpu": ("search", "an index of many features"),
    "onnxruntime": ("export", "ONNX files and int8"),
    "mkdocs-material": ("docs", "building the documentation"),
    "pytest": ("dev", "running the tests"),
}


def diagnosis() -> list[tuple[str, str]]:
    """The lines of `nextembed doctor`, (name, text). A missing or broken package is a line, never an error."""
    import platform
    import shutil

    lines = [
        ("machine", f"{platform.platform()}, {_cores()} cores, {_memory()}"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"),
    ]
    lines += [(name, _installed(name) or "MISSING: reinstall nextembed") for name in PACKAGES]
    lines += [("accelerator", text) for text in _accelerators()]
    for name, (extra, use) in EXTRAS.items():
        text = _installed(name) or f"not installed: pip install 'nextembed[{extra}]'"
        lines.append((name, f"{text} ({use})"))
    return lines


def _installed(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))  # fewer than all in a container
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory"
    except (AttributeError, ValueError, OSError):  # Windows
        return "unknown memory"


def _accelerators() -> list[str]:
    try:
        import torch

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device is None:
            return [f"none: training runs on the CPU, {torch.get_num_threads()} threads"]
        if device.type != "cuda":
            return [device.type]
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return [f"{p.name}, {p.total_memory / 2**30:.0f} GiB, {bf16}, CUDA {torch.version.cuda}" for p in found]
    except Exception as err:  # a broken driver or installation is what doctor should report
        return [f"torch does not start: {type(err).__name__}: {' '.join(str(err).split())[:200]}"]
