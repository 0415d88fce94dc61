"""The trial before the first step: what will not fit fails in the first minute, not in an hour."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.phases import BatchShape
from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.masks import BLOCK_SIZE, Rule
from meloformer.training.engine import Engine
from meloformer.training.graphs import Watch, padding
from meloformer.training.loss import step_loss
from meloformer.training.out_of_memory import Memory, describe, peak_memory, start_measuring

# Without an accelerator: what a few cores compute in seconds.
FLOPS_ON_A_CPU = 3e11


@dataclass(frozen=True)
class Trial:
    """How much memory the largest batch takes.

    Args:
        shape: of the batch.
        memory: of each rank's device, with the optimizer's state that the first update adds.
    """

    shape: BatchShape
    memory: tuple[Memory, ...]

    @property
    def fullest(self) -> int:
        """Rank with the least room."""
        shares = [memory.peak / memory.total for memory in self.memory]
        return shares.index(max(shares))

    def lines(self, memory_headroom: float) -> list[str]:
        """What the user should know: the peak, and a warning where it is above the headroom."""
        memory = self.memory[self.fullest]
        lines = [f"the largest batch, {describe(self.shape)}, fits: peak {memory}"]
        if memory.peak > memory_headroom * memory.total:
            lines.append(
                f"warning: on rank {self.fullest} the peak is above --memory_headroom "
                f"{memory_headroom:g} ({memory_headroom:.0%}): a run can still fail where memory "
                "is fragmented or another process takes some; take a smaller --batch_size, or "
                "--checkpointing ffn"
            )
        return lines


def is_cheap(config: MuseFormerConfig, shape: BatchShape, device: torch.device) -> bool:
    """Whether to try: always with an accelerator, on a CPU where it is a matter of seconds."""
    if device.type != "cpu":
        return True
    rows, tokens, summaries = shape
    num_open = rows * summaries if config.num_open_layers else 0
    pairs = StepPairs(
        update=float(rows * tokens * (tokens + summaries)),
        summarize=float(rows * summaries * (tokens + summaries)),
        opened=float(num_open * (tokens + summaries)),
    )
    flops = training_flops(config, rows * tokens, rows * summaries, pairs, num_open)
    return flops <= FLOPS_ON_A_CPU


def try_largest(
    engine: Engine,
    predict: Callable[[Batch], Tensor],
    shape: BatchShape,
    blocks_rule: Rule | None,
    *,
    accumulates: bool,
    watch: Watch,
    block_size: int = BLOCK_SIZE,
    opened: bool = False,
    fuse: bool = False,
) -> Trial:
    """Run the largest batch forward and backward on all ranks; collective.

    Weights, optimizer state, random numbers and the place in the data stay as they are.

    Args:
        engine: the model, between two steps; its gradients are dropped.
        predict: logits of a batch.
        shape: the largest.
        blocks_rule: rule to build block lists for; None builds none.
        accumulates: whether a step has more micro-batches than one: then the peak comes in the
            second, beside the gradients of the first.
        watch: held around each batch.
        block_size: tokens along each side of a block.
        opened: whether batches of training can have open summaries.
        fuse: whether the loss is compiled.
    """
    ranks, device = engine.ranks, engine.ranks.device
    devices = [device] if device.type == "cuda" else []
    start_measuring(device)
    with torch.random.fork_rng(devices=devices):
        for _ in range(2 if accumulates else 1):
            batch = padding(shape, blocks_rule, block_size, opened=opened).to(device)
            with watch(batch):
                loss = step_loss(predict(batch), batch.targets_BT, 1, ranks.world_size, fuse=fuse)
                engine.backward(loss)
            del batch, loss
        engine.grad_norm()
    engine.drop_gradients()
    own = peak_memory(device)
    # One number of each rank at its own place: the sum is all of them.
    numbers = [0.0] * (2 * ranks.world_size)
    numbers[ranks.rank] = own.peak + engine.state_to_come()
    numbers[ranks.world_size + ranks.rank] = own.total
    numbers = ranks.sum(numbers)
    pairs = zip(numbers[: ranks.world_size], numbers[ranks.world_size :], strict=True)
    return Trial(shape, tuple(Memory(peak, total) for peak, total in pairs))
