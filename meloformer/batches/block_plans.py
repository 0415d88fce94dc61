"""Block plans: which blocks of each attention call hold allowed pairs, counted exactly.

A rule depends on piece, bar, instrument and "is it the bar token" only, so it is constant on pairs
of *runs* (stretches of equal labels). With M the tokens of each run in each block and A the rule
between runs, M A M^T counts the allowed pairs of every block; only pairs inside one run need the
order of time, and those have a closed form.
"""

from collections.abc import Sequence

import numpy as np
import torch

from meloformer.model import masks
from meloformer.model.masks import BLOCK_SIZE, Blocks, Label, Layout, Rule, StageBlocks


def build_blocks(layout: Layout, rule: Rule, block_size: int = BLOCK_SIZE) -> Blocks:
    """Block lists of a batch.

    Args:
        layout: labels of B rows as numpy arrays.
        rule: head groups.
        block_size: tokens along each side of a block.

    Returns:
        Blocks of numpy int32 arrays.
    """
    rows = [_row_counts(layout, row, rule, block_size) for row in range(len(layout.piece_BT))]
    num_tokens, num_slots = layout.piece_BT.shape[1], layout.piece_BS.shape[1]
    tokens, slots = _edges(num_tokens, block_size), _edges(num_slots, block_size)
    # Summary capacity is a multiple of the block size, so no block holds both kinds of keys.
    key_sizes = np.concatenate([np.diff(slots), np.diff(tokens)])
    stages = [
        _stage([row[stage] for row in rows], np.diff(queries), key_sizes, block_size)
        for stage, queries in enumerate([slots] + [tokens] * len(rule))
    ]
    return Blocks(summarize=stages[0], update=tuple(stages[1:]))


def _row_counts(layout: Layout, row: int, rule: Rule, block_size: int) -> list[np.ndarray]:
    """Allowed pairs per block: (Q, N) for SUMMARIZE, then for each head group of UPDATE."""
    piece_T, bar_T = layout.piece_BT[row], layout.bar_BT[row]
    instrument_T, index_T = layout.instrument_BT[row], layout.index_BT[row]
    num_tokens, num_slots = len(piece_T), len(layout.piece_BS[row])

    is_bar_token_T = (index_T == 0) & (bar_T >= 0)
    labels = np.stack([piece_T, bar_T, instrument_T, is_bar_token_T])
    starts_T = np.concatenate([[True], (labels[:, 1:] != labels[:, :-1]).any(axis=0)])
    first_R = np.flatnonzero(starts_T)
    run_T = np.cumsum(starts_T) - 1

    runs = Label(
        piece_T[first_R],
        bar_T[first_R],
        instrument_T[first_R],
        index_T[first_R],
        first_R,
        np.zeros(len(first_R), dtype=bool),
    )
    absent_S = np.full(num_slots, -1)
    slots = Label(
        layout.piece_BS[row],
        layout.bar_BS[row],
        absent_S,
        absent_S,
        np.arange(num_slots),
        np.ones(num_slots, dtype=bool),
    )

    token_blocks = _edges(num_tokens, block_size)
    slot_edges = _edges(num_slots, block_size)
    in_time = _run_counts(run_T, len(first_R), token_blocks)

    summary_summary = _block_sums(
        masks.summary_reads(_rows(slots), _columns(slots)), slot_edges, slot_edges
    )
    summary_run = masks.summary_reads(_rows(slots), _columns(runs)).astype(np.float32)
    summary_token = np.add.reduceat(_product(summary_run, in_time.T), slot_edges[:-1], axis=0)
    counts = [np.concatenate([summary_summary, summary_token], axis=1)]

    for group in rule:
        placed = in_time
        if group.order == "instrument":
            order_T = masks.instrument_order(piece_T, instrument_T)
            placed = _run_counts(run_T[order_T], len(first_R), token_blocks)
        run_slot = masks.token_reads(group, _rows(runs), _columns(slots)).astype(np.float32)
        token_summary = np.add.reduceat(_product(placed, run_slot), slot_edges[:-1], axis=1)

        between = masks.token_reads(group, _rows(runs), _columns(runs)).astype(np.float32)
        np.fill_diagonal(between, 0.0)
        # Inside a run: does a token read an earlier one of its run?
        earlier = runs._replace(time=runs.time - 1)
        inside_R = np.diagonal(masks.token_reads(group, _rows(runs), _columns(earlier)))
        pairs = _product(_product(placed, between), placed.T)
        pairs += np.tril(_product(placed * inside_R, placed.T), -1)
        own = np.where(inside_R, placed * (placed + 1) / 2, placed).sum(axis=1)
        pairs[np.diag_indices_from(pairs)] += own
        counts.append(np.concatenate([token_summary, pairs], axis=1))
    return counts


def _stage(
    counts: Sequence[np.ndarray], query_sizes: np.ndarray, key_sizes: np.ndarray, block_size: int
) -> StageBlocks:
    counts_BQN = np.rint(np.stack(counts)).astype(np.int64)
    area_QN = query_sizes[:, None] * key_sizes[None, :]
    # A block cut short by the end of the row is never called full: the kernel would read past it.
    is_full = (counts_BQN == area_QN) & (area_QN == block_size**2)
    is_partial = (counts_BQN > 0) & ~is_full
    kv_num, kv_index = _lists(is_partial)
    full_num, full_index = _lists(is_full)
    return StageBlocks(
        kv_num_BQ=kv_num, kv_index_BQN=kv_index, full_num_BQ=full_num, full_index_BQN=full_index
    )


def _lists(chosen_BQN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of chosen blocks and their indices, chosen ones first in ascending order."""
    index = np.argsort(~chosen_BQN, axis=-1, kind="stable")
    return chosen_BQN.sum(axis=-1).astype(np.int32), index.astype(np.int32)


def _edges(length: int, block_size: int) -> np.ndarray:
    """Block borders of a row: 0, block_size, ..., length."""
    return np.append(np.arange(0, length, block_size), length)


def _run_counts(run_T: np.ndarray, num_runs: int, edges: np.ndarray) -> np.ndarray:
    """(blocks, runs) float32: tokens of each run in each block of the storage order."""
    num_blocks = len(edges) - 1
    block_T = np.repeat(np.arange(num_blocks), np.diff(edges))
    flat = np.bincount(block_T * num_runs + run_T, minlength=num_blocks * num_runs)
    return flat.reshape(num_blocks, num_runs).astype(np.float32)


def _block_sums(allowed: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    sums = np.add.reduceat(allowed.astype(np.float32), rows[:-1], axis=0)
    return np.add.reduceat(sums, columns[:-1], axis=1)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product by torch, whose threads a data worker limits; numpy's are its own."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def _rows(label: Label) -> Label:
    return Label(*(field[:, None] for field in label))


def _columns(label: Label) -> Label:
    return Label(*(field[None, :] for field in label))
