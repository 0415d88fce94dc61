"""Out of memory, on whichever device: recognised, and said with what can be done about it."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch

from meloformer.batches.phases import BatchShape
from meloformer.batches.plan import PlanConfig
from meloformer.model.config import Checkpointing, MuseFormerConfig
from meloformer.model.masks import num_summaries
from meloformer.model.memory import BatchSize, peak_bytes
from meloformer.training.leaving import OutOfMemoryError
from meloformer.training.metrics import BYTES_PER_GIB
from meloformer.training.ranks import Ranks

# What torch and its libraries say in a plain RuntimeError; CUDA's own allocator has a class.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Memory:
    """Of one rank's device, in bytes.

    Args:
        peak: most that was held at once, with what others hold on the device.
        total: what there is.
    """

    peak: float
    total: float

    def __str__(self) -> str:
        share = self.peak / self.total
        gib = [f"{value / BYTES_PER_GIB:.2f}" for value in (self.peak, self.total)]
        return f"{gib[0]} GiB of {gib[1]} GiB ({share:.0%})"


def start_measuring(device: torch.device) -> None:
    """Forget the peak so far, where a device can; a process on a CPU keeps its own for life."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Memory:
    """Peak since `start_measuring`, and what the device has; of this process on a CPU."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # The context, the buffers of collectives, other processes: not torch's, and not free.
        outside = max(total - free - torch.cuda.memory_reserved(device), 0)
        return Memory(torch.cuda.max_memory_allocated(device) + outside, total)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Memory(peak, total_bytes(device))


def total_bytes(device: torch.device) -> float:
    """What a device has; on a CPU what this process may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = psutil.virtual_memory().total
    return total if allowed == resource.RLIM_INFINITY else min(total, allowed)


def held_bytes(device: torch.device) -> float:
    """What a device holds between two batches, with what others hold on it."""
    if device.type != "cuda":
        return psutil.Process().memory_info().rss
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return total - free - cached


def what_fits(config: MuseFormerConfig, size: BatchSize, room: float) -> list[str]:
    """Flags with which a batch that is too large fits, by formula.

    Args:
        config: the model.
        size: the batch, and how it is computed.
        room: bytes for it, beside weights, gradients and optimizer state.

    Returns:
        Ways to start again, one string of flags each; empty where not a single short row fits.
    """

    def fits(rows: int, tokens: int, checkpointing: Checkpointing) -> bool:
        other = replace(
            size,
            rows=rows,
            tokens=tokens,
            summaries=num_summaries(tokens),
            checkpointing=checkpointing,
        )
        return peak_bytes(config, other) <= room

    ways = []
    modes: tuple[Checkpointing, ...] = ("none", "ffn", "layer")
    for mode in modes[modes.index(size.checkpointing) + 1 :]:
        if fits(size.rows, size.tokens, mode):
            ways.append(f"--checkpointing {mode}")
            break
    for rows in range(size.rows - 1, 0, -1):
        if fits(rows, size.tokens, size.checkpointing):
            ways.append(f"--batch_size {rows}")
            break
    step = PlanConfig().bucket_multiple
    for tokens in range((size.tokens - 1) // step * step, 0, -step):
        if fits(size.rows, tokens, size.checkpointing):
            ways.append(f"--max_seq_len {tokens}")
            break
    return ways


def remedy(config: MuseFormerConfig, size: BatchSize | None, room: float) -> str:
    """What to do about a batch that is too large, for the end of a message.

    Args:
        config: the model.
        size: the batch; None where the formula says nothing about it.
        room: see `what_fits`.
    """
    ways = what_fits(config, size, room) if size else []
    if ways:
        start = f"by formula it fits with {' or with '.join(ways)}"
    else:
        start = (
            "start again with a smaller --batch_size, with --checkpointing ffn or layer, or "
            "with a shorter --max_seq_len"
        )
    return (
        f"{start}; an optimizer step keeps its rows; launch/tools/max_seqlen.py finds the "
        "longest row by trying; the checkpoints stand"
    )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that memory has run out."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__
    return False


@contextmanager
def explain_out_of_memory(
    ranks: Ranks, moment: str, shape: BatchShape | None, remedy: Callable[[], str]
) -> Iterator[None]:
    """Turn running out of memory inside into one line that says where, how much, and what to do.

    Args:
        ranks: who runs out.
        moment: what was being done ("step 7").
        shape: of the micro-batch; None where it is not one of them that needs the room.
        remedy: called only where it is needed.

    Raises:
        OutOfMemoryError: the line.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        batch = f", with a micro-batch of {describe(shape)}" if shape else ""
        raise OutOfMemoryError(
            f"out of memory on rank {ranks.rank} ({ranks.device}) in {moment}{batch}: peak "
            f"{peak_memory(ranks.device)}; {remedy()}"
        ) from error


def describe(shape: BatchShape) -> str:
    """A shape in words.

    >>> describe(BatchShape(6, 8192, 512))
    '6 rows of 8,192 tokens and 512 summaries'
    """
    rows = "1 row" if shape.rows == 1 else f"{shape.rows} rows"
    return f"{rows} of {shape.tokens:,} tokens and {shape.summaries:,} summaries"
