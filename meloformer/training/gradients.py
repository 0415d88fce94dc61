"""Where DeepSpeed keeps the gradients of a step, and how to end, measure and forget them.

Its `step` reduces what is left, looks at the norm and updates, all at once: too late to leave a
step out. Each class here takes the first part over from one of its optimizers, so that `step`
only updates. All of them reach into DeepSpeed's internals; the version is pinned and the tests
compare every stage with plain autograd.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch


class Gradients(Protocol):
    """The accumulated gradients of one step, partitioned or not."""

    is_finished: bool

    def finish(self) -> None:
        """Reduce what is still local; once per step, collective."""

    def norms(self) -> list[float]:
        """Finish; norm of each group of parameters over all ranks, negative if not finite."""

    def clear(self) -> None:
        """Forget all gradients since the last update."""


class _Taken(ABC):
    """What the three have in common."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self.is_finished = False

    def finish(self) -> None:
        if not self.is_finished:
            self._finish()
            self.is_finished = True

    def clear(self) -> None:
        # zero_grad clears the model's gradients only. What the partitions have accumulated
        # stays behind, and would be applied with the next step.
        self._zero.zero_grad(set_to_none=True)
        self._clear_accumulated()
        self._engine._unmanaged_backward_count = 0
        self.is_finished = False

    @abstractmethod
    def _finish(self) -> None:
        """Reduce what is still local."""

    @abstractmethod
    def _clear_accumulated(self) -> None:
        """Forget what the partitions hold."""


class PartitionedGradients(_Taken):
    """Stages 1 and 2. Stage 2 has reduced in every backward; stage 1 reduces at the end."""

    def __init__(self, engine: Any, stage: int) -> None:
        super().__init__(engine)
        if stage == 2:
            self._sort = self._zero.finalize_gradient_accumulation_boundary
            self._zero.finalize_gradient_accumulation_boundary = lambda: None
        else:
            engine.enable_backward_allreduce = False
            self._sort = self._zero.reduce_gradients

    def _finish(self) -> None:
        self._zero.set_gradient_accumulation_boundary(True)
        self._sort()

    def norms(self) -> list[float]:
        self.finish()
        return [float(self._zero.scaled_global_norm())]

    def _clear_accumulated(self) -> None:
        self._zero.micro_step_id = -1
        self._zero._release_preflattened_grad_buffers()
        for held in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
            for group in held:
                held[group] = None
        if self._zero.cpu_offload:
            self._zero.reset_cpu_buffers()
            self._zero._offload_accumulated_param_ids = set()


class WholeGradients(_Taken):
    """Stage 1 in bf16: another optimizer, which adds into whole fp32 gradients on every rank."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        engine.enable_backward_allreduce = False

    def _finish(self) -> None:
        self._engine.buffered_allreduce_fallback()

    def norms(self) -> list[float]:
        self.finish()
        whole, _ = self._zero.get_grads_for_norm()
        norm = torch.stack([gradient.float().norm() for gradient in whole]).norm()
        return [float(norm) if torch.isfinite(norm) else -1.0]

    def _clear_accumulated(self) -> None:
        self._zero.clear_hp_grads()
        self._zero.clear_lp_grads(set_to_none=True)


class ShardedGradients(_Taken):
    """Stage 3: partitions are reduced in every backward and only overwritten, never cleared."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self._sort = self._zero.finalize_gradient_accumulation_boundary
        self._zero.finalize_gradient_accumulation_boundary = lambda: None

    def _finish(self) -> None:
        self._sort()

    def norms(self) -> list[float]:
        self.finish()
        return [float(norm) for norm in self._zero._get_norm_groups()]

    def _clear_accumulated(self) -> None:
        # The first backward of a step overwrites instead of adding.
        self._zero._pre_step()
        if self._zero.offload_optimizer:
            self._zero.reset_cpu_buffers()
        else:
            self._zero.averaged_gradients = {}


def take_over(engine: Any, stage: int) -> Gradients:
    """Take the end of a step over from a DeepSpeed engine.

    Args:
        engine: from `deepspeed.initialize`, with managed_gradient_accumulation off.
        stage: ZeRO stage, 1 to 3.
    """
    if stage == 3:
        return ShardedGradients(engine)
    if hasattr(engine.optimizer, "reduce_gradients"):
        return PartitionedGradients(engine, stage)
    return WholeGradients(engine)
