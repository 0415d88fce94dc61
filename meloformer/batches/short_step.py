"""A step in small: the first windows of a real one, cut to rows of one short length."""

from meloformer.batches.phases import BatchShape
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import Step
from meloformer.batches.share import EMPTY_ROW, MicroBatchSpec
from meloformer.batches.windows import Window, bar_lines


def short_step(
    index: PieceIndex, step: Step, shape: BatchShape, world_size: int, num_micro_steps: int
) -> list[list[MicroBatchSpec]]:
    """Share out the beginnings of a step's windows, one window to a row.

    Rows stay ragged: each ends with the last bar that fits. Every micro-batch gets its first row
    before any gets a second one, and where windows run out rows are empty, as in a real step.

    Args:
        index: the pieces.
        step: where the windows come from.
        shape: of every micro-batch.
        world_size: ranks to share among.
        num_micro_steps: micro-batches of each rank.

    Returns:
        For every micro-step that of each rank.
    """
    num_batches = num_micro_steps * world_size
    rows: list[list[tuple[Window, ...]]] = [[] for _ in range(num_batches)]
    beginnings = _beginnings(index, step, shape)[: num_batches * shape.rows]
    for number, window in enumerate(beginnings):
        rows[number % num_batches].append((window,))
    specs = [
        MicroBatchSpec(
            epoch=step.epoch,
            seq_len=shape.tokens,
            rows=(*own, *[EMPTY_ROW] * (shape.rows - len(own))),
        )
        for own in rows
    ]
    return [specs[start : start + world_size] for start in range(0, num_batches, world_size)]


def _beginnings(index: PieceIndex, step: Step, shape: BatchShape) -> list[Window]:
    """The bars of each window that fit a row; windows whose first bar does not are left out."""
    found = []
    for piece, first, last in (window for row in step.rows for window in row.windows):
        fits = bar_lines(index, piece).fit(first, shape.tokens, shape.summaries)
        if min(fits, last) > first:
            found.append(Window(piece, first, min(fits, last)))
    return found
