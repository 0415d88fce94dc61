"""Block plans: which blocks of each attention call hold allowed pairs, counted exactly.

A rule depends on piece, bar, instrument and "is it the bar token" only, so it is constant on pairs
of *runs* (stretches of equal labels). With M the tokens of each run in each block and A the rule
between runs, M A M^T counts the allowed pairs of every block; only pairs inside one run need the
order of time, and those have a closed form. Pieces of a row never read each other and padding
reads itself alone, so A is made piece by piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from meloformer.batches.kernel_labels import LabelledRow, stack_labels
from meloformer.errors import ConfigError
from meloformer.model import masks
from meloformer.model.masks import (
    BLOCK_SIZE,
    BLOCK_SIZES,
    Blocks,
    HeadGroup,
    Label,
    Layout,
    Rule,
    StageBlocks,
)

# Runs that are looked at together: few, and fewer pairs are looked at that no rule allows; many,
# and less time goes into calls.
_QUERY_RUNS = 128


def build_blocks(layout: Layout, rule: Rule, block_size: int = BLOCK_SIZE) -> Blocks:
    """Block lists of a batch.

    Args:
        layout: labels of B rows as numpy arrays.
        rule: head groups.
        block_size: tokens along each side of a block.

    Returns:
        Blocks of numpy arrays.

    Raises:
        ConfigError: a block size that a kernel has no tiles for.
    """
    if block_size not in BLOCK_SIZES:
        raise ConfigError(
            f"a block size of {block_size} tokens is not supported; "
            f"allowed: {', '.join(map(str, BLOCK_SIZES))}"
        )
    num_rows = len(layout.piece_BT)
    order_BT = inverse_BT = None
    if any(group.order == "instrument" for group in rule):
        order_BT = np.stack(
            [
                masks.instrument_order(layout.piece_BT[row], layout.instrument_BT[row])
                for row in range(num_rows)
            ]
        ).astype(np.int64)
        inverse_BT = np.empty_like(order_BT)
        np.put_along_axis(inverse_BT, order_BT, np.arange(order_BT.shape[1])[None], axis=1)
    rows = [
        _row_counts(layout, row, rule, block_size, None if order_BT is None else order_BT[row])
        for row in range(num_rows)
    ]
    num_tokens, num_slots = layout.piece_BT.shape[1], layout.piece_BS.shape[1]
    tokens, slots = _edges(num_tokens, block_size), _edges(num_slots, block_size)
    # Summary capacity is a multiple of the block size, so no block holds both kinds of keys.
    of_slots, of_tokens = np.diff(slots), np.diff(tokens)
    key_sizes = np.concatenate([of_slots, of_tokens])
    labelled = [LabelledRow(layout, row) for row in range(num_rows)]
    summarize = None
    if num_slots:
        lists = _lists([row.summarize for row in rows], of_slots, key_sizes, block_size)
        labels = [row.summarize_labels() for row in labelled]
        summarize = StageBlocks(**lists, labels=stack_labels(labels))
    update, opened = [], []
    for number, group in enumerate(rule):
        stored = (order_BT, inverse_BT) if group.order == "instrument" else (None, None)
        orders = [None] * num_rows if stored[0] is None else list(stored[0])
        counts = [row.update[number] for row in rows]
        lists = _lists(counts, of_tokens, key_sizes, block_size)
        labels = [
            row.update_labels(group, order_T) for row, order_T in zip(labelled, orders, strict=True)
        ]
        update.append(
            StageBlocks(
                **lists, labels=stack_labels(labels), order_BT=stored[0], inverse_BT=stored[1]
            )
        )
        if layout.open_BS is None:
            continue
        counts = [
            np.insert(closed, [len(of_slots)], row.opened[number], axis=1)
            for closed, row in zip(counts, rows, strict=True)
        ]
        lists = _lists(counts, of_tokens, np.concatenate([of_slots, key_sizes]), block_size)
        labels = [
            row.opened_labels(closed, group, order_T)
            for row, closed, order_T in zip(labelled, labels, orders, strict=True)
        ]
        opened.append(StageBlocks(**lists, labels=stack_labels(labels)))
    return Blocks(
        summarize=summarize, update=tuple(update), opened=tuple(opened), block_size=block_size
    )


@dataclass
class _RowCounts:
    """Allowed pairs per block of one row.

    Args:
        summarize: (Q, N) of SUMMARIZE, keys summaries, then tokens.
        update: the same for each head group of UPDATE.
        opened: (Q, S / block) open summaries that each head group's query blocks read; none where
            the layout has no open summaries.
    """

    summarize: np.ndarray
    update: list[np.ndarray] = field(default_factory=list)
    opened: list[np.ndarray] = field(default_factory=list)


def _row_counts(
    layout: Layout, row: int, rule: Rule, block_size: int, order_T: np.ndarray | None
) -> _RowCounts:
    # Half as wide labels, half the time: the rules are bound by memory.
    narrow = np.int16 if layout.piece_BT.shape[1] <= np.iinfo(np.int16).max else np.int32
    piece_T, bar_T, instrument_T, index_T, piece_S, bar_S = (
        array[row].astype(narrow)
        for array in (
            layout.piece_BT,
            layout.bar_BT,
            layout.instrument_BT,
            layout.index_BT,
            layout.piece_BS,
            layout.bar_BS,
        )
    )
    is_bar_token_T = (index_T == 0) & (bar_T >= 0)
    starts_T = np.ones(len(piece_T), dtype=bool)
    starts_T[1:] = is_bar_token_T[1:] != is_bar_token_T[:-1]
    for label_T in (piece_T, bar_T, instrument_T):
        starts_T[1:] |= label_T[1:] != label_T[:-1]
    first_R = np.flatnonzero(starts_T)
    run_T = np.cumsum(starts_T) - 1

    not_summary, summary = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)
    runs = Label(
        piece_T[first_R],
        bar_T[first_R],
        instrument_T[first_R],
        index_T[first_R],
        first_R.astype(narrow),
        not_summary,
    )
    absent = np.full(1, -1, dtype=narrow)
    slots = Label(piece_S, bar_S, absent, absent, np.arange(len(piece_S), dtype=narrow), summary)
    token_edges = _edges(len(piece_T), block_size)
    slot_counts = _run_counts(
        np.arange(len(piece_S)), len(piece_S), _edges(len(piece_S), block_size)
    )
    in_time = _run_counts(run_T, len(first_R), token_edges)
    stretches = _stretches(runs.piece, slots.piece)

    # Padding reads itself alone.
    own_slots = np.where(slots.piece < 0, slot_counts, 0).sum(axis=1)
    counts = _RowCounts(
        np.concatenate([np.diag(own_slots), np.zeros((len(own_slots), len(in_time)))], axis=1)
    )
    num_slot_blocks = len(slot_counts)
    for of_runs, of_slots in stretches:
        queries = _rows(_part(slots, of_slots))
        queries_placed = slot_counts[:, of_slots]
        by_slot = masks.summary_reads(queries, _columns(_part(slots, of_slots)))
        by_run = masks.summary_reads(queries, _columns(_part(runs, of_runs)))
        counts.summarize[:, :num_slot_blocks] += _block_sums(
            queries_placed, by_slot, slot_counts[:, of_slots]
        )
        counts.summarize[:, num_slot_blocks:] += _block_sums(
            queries_placed, by_run, in_time[:, of_runs]
        )

    open_read = np.zeros((len(first_R), num_slot_blocks), dtype=np.float32)
    if layout.open_BS is not None:
        # Whatever the group: how many open summaries of each block a token of a run reads.
        open_slots = slots._replace(piece=layout.open_BS[row].astype(narrow))
        for of_runs, of_slots in stretches:
            by_run = masks.token_reads_open(
                _rows(_part(runs, of_runs)), _columns(_part(open_slots, of_slots))
            )
            open_read[of_runs] = _product(by_run.astype(np.float32), slot_counts[:, of_slots].T)

    for group in rule:
        placed = in_time
        if group.order == "instrument":
            assert order_T is not None
            placed = _run_counts(run_T[order_T], len(first_R), token_edges)
        # Inside a run: does a token read an earlier one of its run?
        inside_R = masks.token_reads(group, runs, runs._replace(time=runs.time - 1))
        pairs = np.tril(_product(placed * inside_R, placed.T), -1)
        own = np.where(inside_R, placed * (placed + 1) / 2, placed).sum(axis=1)
        pairs[np.diag_indices_from(pairs)] += own
        of_slot_blocks = np.zeros((len(placed), num_slot_blocks), dtype=np.float32)
        for of_runs, of_slots in stretches:
            blocks = _occupied(placed[:, of_runs])
            of_slot_blocks[blocks] += _block_sums(
                placed[blocks, of_runs],
                masks.token_reads(
                    group, _rows(_part(runs, of_runs)), _columns(_part(slots, of_slots))
                ),
                slot_counts[:, of_slots],
            )
            pairs[blocks, blocks] += _pairs_of_runs(
                group, _part(runs, of_runs), placed[blocks, of_runs]
            )
        counts.update.append(np.concatenate([of_slot_blocks, pairs], axis=1))
        if layout.open_BS is not None:
            counts.opened.append(_product(placed, open_read))
    return counts


def _pairs_of_runs(group: HeadGroup, runs: Label, placed: np.ndarray) -> np.ndarray:
    """Allowed pairs of tokens of different runs of some pieces, by block.

    Args:
        group: the rule.
        runs: labels of the runs, in time.
        placed: (blocks, runs) tokens of each run in each block.
    """
    read = np.zeros((placed.shape[1], len(placed)), dtype=np.float32)
    for start in range(0, len(read), _QUERY_RUNS):
        queries = slice(start, min(start + _QUERY_RUNS, len(read)))
        # No run reads a later one, so those need no look.
        keys = slice(0, queries.stop)
        allowed = masks.token_reads(group, _rows(_part(runs, queries)), _columns(_part(runs, keys)))
        own = np.arange(queries.stop - start)
        allowed[own, start + own] = False
        read[queries] = _product(allowed.astype(np.float32), placed[:, keys].T)
    return _product(placed, read)


def _lists(
    counts: Sequence[np.ndarray], query_sizes: np.ndarray, key_sizes: np.ndarray, block_size: int
) -> dict[str, np.ndarray]:
    """Block lists of StageBlocks by query block and by key block, from allowed pairs per block."""
    counts_BQN = np.rint(np.stack(counts)).astype(np.int64)
    area_QN = query_sizes[:, None] * key_sizes[None, :]
    # A block cut short by the end of the row is never called full: the kernel would read past it.
    is_full = (counts_BQN == area_QN) & (area_QN == block_size**2)
    is_partial = (counts_BQN > 0) & ~is_full
    kv_num, kv_index = _listed(is_partial)
    full_num, full_index = _listed(is_full)
    q_num, q_index = _listed(is_partial.swapaxes(1, 2))
    full_q_num, full_q_index = _listed(is_full.swapaxes(1, 2))
    return {
        "kv_num_BQ": kv_num,
        "kv_index_BQN": kv_index,
        "full_num_BQ": full_num,
        "full_index_BQN": full_index,
        "q_num_BN": q_num,
        "q_index_BNQ": q_index,
        "full_q_num_BN": full_q_num,
        "full_q_index_BNQ": full_q_index,
    }


def _listed(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of chosen blocks along the last axis; their indices, ascending, then the others."""
    index = np.argsort(~chosen, axis=-1, kind="stable")
    return chosen.sum(axis=-1).astype(np.int32), index.astype(np.int32)


def _edges(length: int, block_size: int) -> np.ndarray:
    """Block borders of a row: 0, block_size, ..., length."""
    return np.append(np.arange(0, length, block_size), length)


def _run_counts(run_T: np.ndarray, num_runs: int, edges: np.ndarray) -> np.ndarray:
    """(blocks, runs) float32: tokens of each run in each block of the storage order."""
    num_blocks = len(edges) - 1
    block_T = np.repeat(np.arange(num_blocks), np.diff(edges))
    flat = np.bincount(block_T * num_runs + run_T, minlength=num_blocks * num_runs)
    return flat.reshape(num_blocks, num_runs).astype(np.float32)


def _block_sums(queries: np.ndarray, allowed: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Allowed pairs of each block, from what each query and each key holds of each block."""
    return _product(_product(queries, allowed.astype(np.float32)), keys.T)


def _stretches(piece_R: np.ndarray, piece_S: np.ndarray) -> list[tuple[slice, slice]]:
    """Runs and slots of each piece of a row, small neighbours together, padding left out."""
    num_pieces = int(piece_R.max(initial=-1)) + 1
    # Both stand piece by piece, padding last.
    edges_R, edges_S = (
        np.concatenate([[0], np.cumsum(np.bincount(piece[piece >= 0], minlength=num_pieces))])
        for piece in (piece_R, piece_S)
    )
    stretches, first = [], 0
    for end in range(1, num_pieces + 1):
        if end == num_pieces or edges_R[end + 1] - edges_R[first] > _QUERY_RUNS:
            stretches.append(
                (slice(edges_R[first], edges_R[end]), slice(edges_S[first], edges_S[end]))
            )
            first = end
    return stretches


def _occupied(placed: np.ndarray) -> slice:
    """The blocks that hold some pieces; neighbours are one stretch in every storage order."""
    blocks = np.flatnonzero(placed.any(axis=1))
    return slice(int(blocks[0]), int(blocks[-1]) + 1)


def _part(label: Label, part: slice) -> Label:
    """Labels of a stretch; what is said once holds for all."""
    return Label(*(field if len(field) == 1 else field[part] for field in label))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product by torch, whose threads a data worker limits; numpy's are its own."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def _rows(label: Label) -> Label:
    return Label(*(field[:, None] for field in label))


def _columns(label: Label) -> Label:
    return Label(*(field[None, :] for field in label))
