"""One optimizer step over all ranks: what it amounts to, how long it takes, how far it leads."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from meloformer.batches.batch import Batch
from meloformer.training.checkpoint import TrainingState
from meloformer.training.ranks import Ranks

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Sums over all micro-batches of all ranks.

    Args:
        targets: tokens in the loss.
        tokens: positions that hold a token.
        positions: what the model computes, padding included.
        summaries: bars, each of which has a summary.
        wait_seconds: waiting for data, mean over ranks.
        rank_seconds: of each rank, what it spent on its own in the step before; see `Clock`.
        open_summaries: bars that have an open summary besides.
    """

    targets: int
    tokens: int
    positions: int
    summaries: int
    wait_seconds: float
    rank_seconds: tuple[float, ...]
    open_summaries: int = 0

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return 1 - self.tokens / self.positions


def count_step(
    micro_batches: Sequence[Batch], wait_seconds: float, ranks: Ranks, own_seconds: float = 0.0
) -> StepCounts:
    """Count a step over all ranks; one collective.

    Args:
        micro_batches: of this rank.
        wait_seconds: that it has waited for them.
        ranks: the started processes.
        own_seconds: that it spent on its own in the step before; see `Clock`.
    """
    # Each rank's time at a place of its own: the sum is all of them.
    rank_seconds = [0.0] * ranks.world_size
    rank_seconds[ranks.rank] = own_seconds
    own = [
        sum(batch.num_targets for batch in micro_batches),
        sum(int((batch.layout.piece_BT >= 0).sum()) for batch in micro_batches),
        sum(batch.ids_BT.numel() for batch in micro_batches),
        sum(int((batch.layout.piece_BS >= 0).sum()) for batch in micro_batches),
        sum(
            int((batch.layout.open_BS >= 0).sum())
            for batch in micro_batches
            if batch.layout.open_BS is not None
        ),
        wait_seconds / ranks.world_size,
        *rank_seconds,
    ]
    *counts, waited = (totals := ranks.sum(own))[: -ranks.world_size]
    targets, tokens, positions, summaries, open_summaries = map(int, counts)
    return StepCounts(
        targets=targets,
        tokens=tokens,
        positions=positions,
        summaries=summaries,
        wait_seconds=waited,
        rank_seconds=tuple(totals[-ranks.world_size :]),
        open_summaries=open_summaries,
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come; what a checkpoint carries on.

    Args:
        step: optimizer steps done, dropped ones included.
        tokens_seen: targets of those steps.
        skipped: dropped steps, also those before a rollback.
        skipped_in_a_row: dropped steps since the last good one.
        rollbacks: how often the run has gone back to a checkpoint.
        rolled_back_from: the step after which it last did; 0 where it never has.
    """

    step: int = 0
    tokens_seen: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    rolled_back_from: int = 0

    @classmethod
    def of(cls, state: TrainingState) -> "Progress":
        """What a checkpoint carries on."""
        return cls(
            step=state.step,
            tokens_seen=state.tokens_seen,
            skipped=state.skipped_steps,
            **state.setbacks,
        )

    @property
    def setbacks(self) -> dict[str, int]:
        """What has gone wrong besides the number of dropped steps; for a checkpoint."""
        names = ("skipped_in_a_row", "rollbacks", "rolled_back_from")
        return {name: getattr(self, name) for name in names}

    def after(self, counts: StepCounts, *, is_dropped: bool = False) -> "Progress":
        """Progress after one more step."""
        return replace(
            self,
            step=self.step + 1,
            tokens_seen=self.tokens_seen + counts.targets,
            skipped=self.skipped + is_dropped,
            skipped_in_a_row=self.skipped_in_a_row + 1 if is_dropped else 0,
        )

    def back_to(self, state: TrainingState) -> "Progress":
        """Progress after going back to a checkpoint; what went wrong stays counted."""
        return replace(
            self,
            step=state.step,
            tokens_seen=state.tokens_seen,
            skipped_in_a_row=0,
            rollbacks=self.rollbacks + 1,
            rolled_back_from=self.step,
        )


class Clock:
    """Times the steps of this rank.

    A step ends on all ranks at once, since they wait for each other in it, so its length does not
    say who was slow. What a rank spends on its own does: waiting for data, and forward passes,
    in which no rank waits for another (but under ZeRO stage 3, where all gather weights).

    Args:
        device: where this rank computes.

    Attributes:
        step_seconds: of the last step.
        wait_seconds: of the last step's wait for data.
        own_seconds: of the last step, spent on waiting for data and forward passes.
        pace_seconds: moving average over the recent steps.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.step_seconds = self.wait_seconds = self.own_seconds = self.pace_seconds = 0.0
        self._is_cuda = device.type == "cuda"
        self._forward_seconds = 0.0
        self._forward_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._began = time.perf_counter()

    def wait_for(self, stream: Iterator[Any]) -> Any:
        """Take the next item, and note how long that took."""
        began = time.perf_counter()
        item = next(stream)
        self.wait_seconds = time.perf_counter() - began
        return item

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Held around a forward pass of a step; does not wait for the device."""
        if not self._is_cuda:
            began = time.perf_counter()
            yield
            self._forward_seconds += time.perf_counter() - began
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._forward_events.append((before, after))

    def lap(self) -> None:
        """End a step and begin the next; its loss has been read, so its forward passes are over."""
        milliseconds = sum(before.elapsed_time(after) for before, after in self._forward_events)
        self.own_seconds = self.wait_seconds + self._forward_seconds + milliseconds / 1000
        now = time.perf_counter()
        self.step_seconds = now - self._began
        # The first step compiles and warms up; a plain start would haunt the average.
        share = 0.1 if self.pace_seconds else 1.0
        self.pace_seconds += share * (self.step_seconds - self.pace_seconds)
        self.pause()

    def pause(self) -> None:
        """Begin the next step now: what came between was no training."""
        self._forward_seconds = 0.0
        self._forward_events.clear()
        self._began = time.perf_counter()
