"""What one optimizer step amounts to over all ranks, and how far a run has come."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from meloformer.batches.batch import Batch
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Sums over all micro-batches of all ranks.

    Args:
        targets: tokens in the loss.
        tokens: positions that hold a token.
        positions: what the model computes, padding included.
        summaries: bars, each of which has a summary.
        wait_seconds: waiting for data, mean over ranks.
    """

    targets: int
    tokens: int
    positions: int
    summaries: int
    wait_seconds: float

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return 1 - self.tokens / self.positions


def count_step(micro_batches: Sequence[Batch], wait_seconds: float, ranks: Ranks) -> StepCounts:
    """Count a step over all ranks; one collective."""
    own = [
        sum(batch.num_targets for batch in micro_batches),
        sum(int((batch.layout.piece_BT >= 0).sum()) for batch in micro_batches),
        sum(batch.ids_BT.numel() for batch in micro_batches),
        sum(int((batch.layout.piece_BS >= 0).sum()) for batch in micro_batches),
        wait_seconds / ranks.world_size,
    ]
    *counts, waited = ranks.sum(own)
    targets, tokens, positions, summaries = map(int, counts)
    return StepCounts(
        targets=targets,
        tokens=tokens,
        positions=positions,
        summaries=summaries,
        wait_seconds=waited,
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come; what a checkpoint carries on.

    Args:
        step: optimizer steps done, dropped ones included.
        tokens_seen: targets of those steps.
        skipped: dropped steps.
        skipped_in_a_row: dropped steps since the last good one.
    """

    step: int = 0
    tokens_seen: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def after(self, counts: StepCounts, *, is_finite: bool) -> "Progress":
        """Progress after one more step."""
        return Progress(
            step=self.step + 1,
            tokens_seen=self.tokens_seen + counts.targets,
            skipped=self.skipped + (not is_finite),
            skipped_in_a_row=0 if is_finite else self.skipped_in_a_row + 1,
        )


@dataclass
class Clock:
    """Wall clock of the steps: how long each takes, and how much of it is waiting for data.

    Args:
        step_seconds: of the last step.
        wait_seconds: of the last step's wait for data.
        pace_seconds: moving average over the recent steps.
    """

    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    pace_seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def wait_for(self, stream: Iterator[Any]) -> Any:
        """Take the next item, and note how long that took."""
        began = time.perf_counter()
        item = next(stream)
        self.wait_seconds = time.perf_counter() - began
        return item

    def lap(self) -> None:
        """End a step and begin the next."""
        now = time.perf_counter()
        self.step_seconds, self._began = now - self._began, now
        # The first step compiles and warms up; a plain start would haunt the average.
        share = 0.1 if self.pace_seconds else 1.0
        self.pace_seconds += share * (self.step_seconds - self.pace_seconds)

    def pause(self) -> None:
        """Begin the next step now: what came between was no training."""
        self._began = time.perf_counter()
