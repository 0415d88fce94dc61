"""The memory that is left for micro-batches, and what to do where one of them is too large."""

import torch

from meloformer.batches.phases import BatchShape
from meloformer.model.memory import BatchSize
from meloformer.training.compile_ahead import CompileSpec
from meloformer.training.engine import Engine
from meloformer.training.out_of_memory import held_bytes, remedy, total_bytes


class Room:
    """What a device has left once gradients and optimizer state are there, measured now.

    Args:
        spec: how batches are computed.
        engine: the model, before its first step.
    """

    def __init__(self, spec: CompileSpec, engine: Engine) -> None:
        self._spec = spec
        self._bytes = total_bytes(spec.device) - (
            held_bytes(spec.device) + engine.state_to_come() + engine.gradient_bytes
        )

    def remedy(self, shape: BatchShape | None) -> str:
        """What to do about running out of memory, for the end of a message.

        Args:
            shape: of the batch; None where it was none.
        """
        spec, size = self._spec, None
        # On a CPU attention is dense, and takes what the formula does not count.
        if shape and spec.device.type == "cuda":
            size = BatchSize(
                **shape._asdict(),
                element_bytes=2 if spec.is_bf16 else 4,
                attention_bytes=4 if spec.precision == torch.float32 else None,
                checkpointing=spec.checkpointing,
                is_compiled=spec.fuse,
            )
        return remedy(spec.model, size, self._bytes)
