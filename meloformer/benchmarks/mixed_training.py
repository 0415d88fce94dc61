"""A model that trains as the engine trains one, beside others in the same process.

DeepSpeed's engine partitions over ranks and wants a process for itself; comparisons hold several
models at a time, each with its own optimizer.
"""

import copy
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meloformer.benchmarks.circumstances import circumstances
from meloformer.training.config import UNGIVEN
from meloformer.training.optimizer import OptimizerConfig, build_optimizer

# What a comparison trains where nothing is said: on CUDA what a run trains.
UNGIVEN_SIZES: dict[str, dict[str, Any]] = {
    "cuda": UNGIVEN["cuda"],
    "cpu": {"model_size": "tiny", "max_seq_len": 2048},
}


def weights_dtype(device: torch.device) -> torch.dtype:
    """In which a run computes there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def facts_of(config: Any, device: torch.device, root: Path) -> dict[str, Any]:
    """What was compared and where, as JSON holds it; no path of this machine.

    Args:
        config: flags of a comparison, nothing left open.
        device: where it trains.
        root: of the repository.
    """
    return {
        "settings": asdict(config) | {"data": Path(str(config.data)).name},
        **circumstances(device, root),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


class Learner:
    """Weights that compute and, where those are in bf16, the fp32 copies that are optimized.

    Args:
        master: in fp32; moved to the device.
        device: where it trains.
        dtype: of weights and gradients.

    Attributes:
        master: what the optimizer steps on.
        model: what computes: `master` itself, or a copy in the other dtype.
    """

    def __init__(self, master: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.master = master.to(device)
        has_copies = dtype != torch.float32
        self.model = copy.deepcopy(self.master).to(dtype) if has_copies else self.master
        self._optimizer = build_optimizer(self.master, OptimizerConfig())
        self._masters: list[Tensor] = list(self.master.parameters())
        self._weights: list[Tensor] = list(self.model.parameters())

    def step(self, rate: float) -> None:
        """Step on the gradients of `model`, clipped as in a run, at a learning rate; forget them.

        Args:
            rate: of this step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        has_copies = self.model is not self.master
        if has_copies:
            for master, weight in zip(self._masters, self._weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        nn.utils.clip_grad_norm_(self._masters, OptimizerConfig().gradient_clipping)
        self._optimizer.step()
        if has_copies:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget them."""
        for weight in (*self._weights, *self._masters):
            weight.grad = None
