"""Where a figure was measured: commit, versions, device."""

import contextlib
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from meloformer.training.commit import commit_of

_LIBRARIES = ("torch", "numpy", "symusic", "miditok", "deepspeed")


def versions() -> str:
    """Python and the libraries that figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def driver_version() -> str | None:
    """Of the GPU's driver; None where there is none."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] if said else None


def circumstances(device: torch.device, root: Path) -> dict[str, Any]:
    """Device, driver, versions, commit and date, as JSON holds them.

    Args:
        device: where the figures are measured.
        root: of the repository.
    """
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "driver": driver_version() if is_cuda else None,
        "cuda": torch.version.cuda,
        "versions": versions(),
        "commit": commit_of(root),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
