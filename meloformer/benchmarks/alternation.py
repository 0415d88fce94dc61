"""Several candidates timed in turns in one process, so that a drifting machine hits all alike."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from meloformer.errors import MeloFormerError

BYTES_PER_MIB = 1 << 20

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidate:
    """What is timed.

    Args:
        call: without arguments.
        context: entered for each call, outside its time.
    """

    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one candidate took.

    Args:
        seconds: of each timed call.
        first_seconds: of the first call by the wall clock, compilation included.
        memory: most bytes that a call took on the device above what was held before it; None
            where nobody counts them (CPU).
        graphs: graphs that torch compiled for it, before and while it was timed.
    """

    seconds: tuple[float, ...]
    first_seconds: float
    memory: int | None
    graphs: int

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest call, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Failure:
    """A candidate that cannot run here, and why."""

    reason: str


def time_in_turns(
    candidates: Mapping[str, Candidate], device: torch.device, rounds: int
) -> dict[str, Timing | Failure]:
    """Time each candidate once per round; every second round runs backwards.

    Each runs twice before: once to compile, once for its memory. One that raises is left out of
    the rounds, and its reason stands in its place.

    Args:
        candidates: by name.
        device: where they compute: CUDA events time it there, the clock elsewhere.
        rounds: timed calls of each.
    """
    outcomes: dict[str, Timing | Failure] = {}
    first: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    graphs: dict[str, int] = {}
    for name, candidate in candidates.items():
        before = num_compiled()
        try:
            with candidate.context():
                began = time.perf_counter()
                candidate.call()
                synchronise(device)
                first[name] = time.perf_counter() - began
                memory[name] = _memory_of(candidate.call, device)
        except REFUSALS as error:
            outcomes[name] = Failure(reason_of(error))
        if name in outcomes:  # the error, which holds the frames that hold its tensors, is gone
            release(device)
        graphs[name] = num_compiled() - before
    seconds: dict[str, list[float]] = {name: [] for name in first if name not in outcomes}
    for number in range(rounds):
        for name in in_turn(list(seconds), number):
            before = num_compiled()
            with candidates[name].context():
                seconds[name].append(_seconds_of(candidates[name].call, device))
            graphs[name] += num_compiled() - before
    outcomes |= {
        name: Timing(
            seconds=tuple(times),
            first_seconds=first[name],
            memory=memory[name],
            graphs=graphs[name],
        )
        for name, times in seconds.items()
    }
    return {name: outcomes[name] for name in candidates}


def in_turn(items: Sequence[Item], number: int) -> Sequence[Item]:
    """Those that have their turn in a round: every second round runs backwards.

    A machine whose speed drifts so hits all alike.

    >>> in_turn("abc", 0), in_turn("abc", 1)
    ('abc', 'cba')
    """
    return items[:: -1 if number % 2 else 1]


# What a kernel says that is not for this device, dtype or shape, that is not installed or finds no
# memory; and what the compiler says of it. Everything else is a fault of ours.
REFUSALS = (RuntimeError, NotImplementedError, ImportError, MeloFormerError)


def reason_of(error: BaseException) -> str:
    r"""The first line of what an error says, with its kind.

    >>> reason_of(RuntimeError("No available kernel.\nAborting."))
    'RuntimeError: No available kernel.'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def num_compiled() -> int:
    """Graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def own_clock(device: torch.device) -> float:
    """Seconds of the clock that counts: what else a CPU does is nobody's fault."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def release(device: torch.device) -> None:
    """Give cached memory back, after a candidate that found none or that is done with."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def _memory_of(call: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held
