"""The dense causal attention kernels that torch may have here, to measure sparse attention against.

Each name stands for a context in which `F.scaled_dot_product_attention` takes that kernel and no
other, forward and backward. A kernel that is not for this device, dtype or shape raises when it is
called in its context.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.attention
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Callable[[], AbstractContextManager[None]]

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def dense_kernels(device: torch.device) -> dict[str, Kernel]:
    """Kernels that are worth a try on a device, by name.

    Args:
        device: on a CPU torch has its own flash kernel, and nothing beside it but plain matrix
            products.
    """
    if device.type != "cuda":
        return {
            "flash": functools.partial(_only, SDPBackend.FLASH_ATTENTION),
            "math": functools.partial(_only, SDPBackend.MATH),
        }
    kernels: dict[str, Kernel] = {
        name: functools.partial(_only, backend) for name, backend in _BACKENDS.items()
    }
    # Newer kernels take the place of torch's own flash kernel, if their package is installed; where
    # torch cannot put its own back, they would be timed under its name.
    registered: list[str] = []
    if hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        registered = torch.nn.attention.list_flash_attention_impls()
    return kernels | {name: functools.partial(_instead_of_flash, name) for name in registered}


@contextlib.contextmanager
def _only(backend: SDPBackend) -> Iterator[None]:
    with sdpa_kernel([backend]):
        yield


@contextlib.contextmanager
def _instead_of_flash(name: str) -> Iterator[None]:
    torch.nn.attention.activate_flash_attention_impl(name)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            yield
    finally:
        torch.nn.attention.restore_flash_attention_impl()
