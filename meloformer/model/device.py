"""Which device to compute on."""

from typing import Literal

import torch

from meloformer.errors import ConfigError

DeviceName = Literal["auto", "cuda", "mps", "cpu"]


def choose_device(wanted: DeviceName) -> str:
    """Type of the device to compute on.

    Raises:
        ConfigError: a device was asked for that this machine does not have.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return "cuda" if present["cuda"] else "cpu"
    if not present[wanted]:
        allowed = ", ".join(name for name, here in present.items() if here)
        raise ConfigError(
            f"--device {wanted}: none found on this machine; allowed: auto, {allowed}"
        )
    return wanted
