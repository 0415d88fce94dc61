"""A model's own summaries of windows: what bridges learn to foretell, and what pieces lend."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.rows import best_fit
from meloformer.batches.windows import SizedWindow, Windows
from meloformer.bridge.joined_windows import join_windows
from meloformer.model.attention import AttentionPlan, Backend, build_plan
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.masks import BLOCK_SIZE, num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import ATTRIBUTE_KINDS, drop_attributes
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.tokens.windows import bar_starts, cut_window, summary_windows

# Most bars of a window, and bars that two windows of a long piece share.
MAX_BARS = 160
OVERLAP = 16

# How windows share the rows of a batch.
RowShape = Literal["alone", "packed"]

_KEEP_NOTHING = np.zeros(len(ATTRIBUTE_KINDS), dtype=bool)


class RowBatch(NamedTuple):
    """Rows for the model, and where each window stands in them.

    Args:
        batch: on the model's device.
        plan: of its attention.
        slots: (window, row, first slot, slot behind the last) of each window.
    """

    batch: Batch
    plan: AttentionPlan
    slots: list[tuple[int, int, int, int]]


def bare_window(ids: np.ndarray, starts: np.ndarray, first: int, last: int) -> np.ndarray:
    """Tokens of some bars with all optional attributes absent, as summaries are taken of them.

    Args:
        ids: (T,) a whole piece, BOS to EOS.
        starts: its `bar_starts`.
        first: first bar.
        last: one past the last bar.
    """
    return drop_attributes(cut_window(ids, first, last, starts), _KEEP_NOTHING)


def summaries_of_windows(
    model: MuseFormer,
    windows: Sequence[np.ndarray],
    *,
    batch_size: int = 8,
    layer: int = INJECTION_LAYER,
    on_batch: Callable[[int], None] | None = None,
    backend: Backend | None = None,
    rows: RowShape | None = None,
) -> list[Tensor]:
    """(bars, D) float32 summaries of each window, on the CPU; what a window gives is its own.

    Args:
        model: in evaluation mode.
        windows: token ids, each a sequence that decodes alone.
        batch_size: rows that are computed together.
        layer: after which the summaries are taken, from 1.
        on_batch: called after each batch with the bars that it held.
        backend: of attention; see `row_batches`.
        rows: how windows share rows; see `row_batches`.
    """
    found: list[Tensor | None] = [None] * len(windows)
    for batch, plan, slots in row_batches(model, windows, batch_size, backend, rows):
        with torch.no_grad():
            s_BSD = model.summaries(batch.ids_BT, batch.layout, plan, layer).float().cpu()
        for window, row, first, last in slots:
            found[window] = s_BSD[row, first:last].clone()
        if on_batch is not None:
            on_batch(sum(last - first for _, _, first, last in slots))
    return [summaries for summaries in found if summaries is not None]


def summaries_of_piece(
    model: MuseFormer,
    ids: np.ndarray,
    *,
    max_bars: int = MAX_BARS,
    overlap: int = OVERLAP,
    max_tokens: int | None = None,
    batch_size: int = 8,
) -> Tensor:
    """(bars, D) summaries of a whole piece of any length, its windows joined.

    Args:
        model: in evaluation mode.
        ids: (T,) BOS to EOS.
        max_bars: most bars of a window.
        overlap: bars that two windows share.
        max_tokens: most tokens of a window; the model's context length if not given.
        batch_size: windows that are computed together.

    Raises:
        ConfigError: a bar is longer than a window may be.
    """
    starts = bar_starts(ids)
    spans = summary_windows(
        ids,
        starts,
        max_bars=max_bars,
        max_tokens=max_tokens or model.config.max_seq_len,
        overlap=overlap,
    )
    windows = [bare_window(ids, starts, first, last) for first, last in spans]
    summaries = summaries_of_windows(model, windows, batch_size=batch_size)
    return join_windows([(*span, s) for span, s in zip(spans, summaries, strict=True)])


def row_batches(
    model: MuseFormer,
    windows: Sequence[np.ndarray],
    batch_size: int,
    backend: Backend | None = None,
    rows: RowShape | None = None,
) -> Iterator[RowBatch]:
    """Windows in rows, in batches on the model's device.

    Args:
        model: whose device, rule and context length count.
        windows: token ids.
        batch_size: rows of a batch.
        backend: of attention; if not given, `flex` on CUDA and `dense` elsewhere.
        rows: `packed` lays windows side by side in rows of one length, since the kernel of a GPU is
            compiled anew for every shape; `alone` gives each a row no longer than its batch needs,
            since dense attention pays for the square. If not given, what the backend likes.
    """
    device = model.token_embedding.weight.device
    rule = rule_of(model.config.rule)
    backend = backend or ("flex" if device.type == "cuda" else "dense")
    rows = rows or ("packed" if backend == "flex" else "alone")
    for numbers_of_rows, length in (_packed if rows == "packed" else _alone)(
        model, windows, batch_size
    ):
        batch = collate_rows(
            [[windows[number] for number in numbers] for numbers in numbers_of_rows],
            length,
            rule if backend == "flex" else None,
        ).to(device)
        slots = []
        for row, numbers in enumerate(numbers_of_rows):
            edges = np.cumsum([0, *(count_bars(windows[number]) for number in numbers)]).tolist()
            slots += [
                (number, row, *span)
                for number, span in zip(numbers, itertools.pairwise(edges), strict=True)
            ]
        yield RowBatch(batch, build_plan(batch.layout, rule, backend, batch.blocks), slots)


def count_bars(ids: np.ndarray) -> int:
    """Bars of a window."""
    return int((KIND_OF.take(ids) == int(Kind.BAR)).sum())


def row_length(num_tokens: int, num_bars: int) -> int:
    """Whole blocks that take so many tokens and as many bars."""
    length = -(-num_tokens // BLOCK_SIZE) * BLOCK_SIZE
    while num_summaries(length) < num_bars:
        length += BLOCK_SIZE
    return length


def _alone(
    model: MuseFormer, windows: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[list[list[int]], int]]:
    in_order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
    for start in range(0, len(in_order), batch_size):
        chosen = in_order[start : start + batch_size]
        most_bars = max(count_bars(windows[number]) for number in chosen)
        length = row_length(len(windows[chosen[-1]]), most_bars)
        yield [[number] for number in chosen], length


def _packed(
    model: MuseFormer, windows: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[list[list[int]], int]]:
    bars = [count_bars(ids) for ids in windows]
    length = row_length(max(model.config.max_seq_len, *map(len, windows)), max(bars))
    sized = Windows.of(
        SizedWindow(number, 0, num_bars, len(ids))
        for number, (ids, num_bars) in enumerate(zip(windows, bars, strict=True))
    )
    placed, edges = best_fit(sized, length, num_summaries(length))
    rows = [placed.piece[first:last].tolist() for first, last in itertools.pairwise(edges)]
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        # Rows without a window keep the shape.
        yield chosen + [[]] * (batch_size - len(chosen)), length
