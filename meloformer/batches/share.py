"""Sharing out: which rows of a step a rank computes, and in which micro-steps.

Every rank runs the same number of micro-batches of the same shapes; where rows run out, rows
without windows take their place and weigh nothing.
"""

from dataclasses import dataclass

from meloformer.batches.plan import Step
from meloformer.batches.rows import Row
from meloformer.batches.windows import Window

EMPTY_ROW: tuple[Window, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchSpec:
    """What a rank collates for one micro-step.

    Args:
        epoch: seeds what is random about a window.
        seq_len: length of every row, the same on all ranks.
        rows: windows of each row; an empty row has zero weight.
    """

    epoch: int
    seq_len: int
    rows: tuple[tuple[Window, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """What a step amounts to over all ranks; `padded_tokens` counts what the model computes."""

    epoch: int
    num_rows: int
    num_windows: int
    num_tokens: int
    padded_tokens: int

    @property
    def padding(self) -> float:
        """Share of the computed positions that hold no token of the plan."""
        return 1 - self.num_tokens / self.padded_tokens


def micro_batches(
    step: Step, rank: int, world_size: int, micro_batch_rows: int
) -> list[MicroBatchSpec]:
    """The part of a step that is a rank's own.

    Rows are sorted by length, longest first, so that the ranks of a micro-step share a length and a
    run that lacks memory fails in its first micro-step.
    """
    return [
        MicroBatchSpec(
            epoch=step.epoch,
            seq_len=chunk[0].length,
            rows=_pad_rows([row.windows for row in chunk[rank::world_size]], micro_batch_rows),
        )
        for chunk in _chunks(step, world_size, micro_batch_rows)
    ]


def step_facts(step: Step, world_size: int, micro_batch_rows: int) -> StepFacts:
    """Count a step as `world_size` ranks compute it."""
    chunk_rows = world_size * micro_batch_rows
    chunks = _chunks(step, world_size, micro_batch_rows)
    return StepFacts(
        epoch=step.epoch,
        num_rows=len(step.rows),
        num_windows=sum(len(row.windows) for row in step.rows),
        num_tokens=sum(row.tokens for row in step.rows),
        padded_tokens=sum(chunk_rows * chunk[0].length for chunk in chunks),
    )


def _chunks(step: Step, world_size: int, micro_batch_rows: int) -> list[list[Row]]:
    """Rows of each micro-step over all ranks, the longest first."""
    rows = sorted(step.rows, key=lambda row: (row.length, row.tokens), reverse=True)
    size = world_size * micro_batch_rows
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _pad_rows(rows: list[tuple[Window, ...]], num_rows: int) -> tuple[tuple[Window, ...], ...]:
    return (*rows, *[EMPTY_ROW] * (num_rows - len(rows)))
