"""How much a step computes, for its share of the device's peak (MFU)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.masks import Label, Layout, Rule, summary_reads, token_reads
from meloformer.training.step import StepCounts

SAMPLED_QUERIES = 128


@dataclass(frozen=True, kw_only=True)
class PairRate:
    """Query-key pairs that a rule allows, per query; padding is no query.

    Args:
        update: keys that a token reads, mean over key/value heads.
        summarize: keys that a summary reads.
    """

    update: float
    summarize: float


def pair_rate(layout: Layout, rule: Rule, num_queries: int = SAMPLED_QUERIES) -> PairRate:
    """Count the allowed keys of some queries, spread evenly over the rows of a batch.

    Args:
        layout: labels on the CPU.
        rule: head groups.
        num_queries: queries to look at, tokens and summaries each.
    """
    tokens, summaries = _labels(layout.piece_BT, layout), _labels(layout.piece_BS, layout)
    keys = Label(*(torch.cat(pair, dim=1) for pair in zip(summaries, tokens, strict=True)))
    shares = sum(group.share for group in rule)
    update = sum(
        group.share / shares * _keys_per_query(_reads_of(group), tokens, keys, num_queries)
        for group in rule
    )
    return PairRate(
        update=update, summarize=_keys_per_query(summary_reads, summaries, keys, num_queries)
    )


def step_flops(config: MuseFormerConfig, counts: StepCounts, rate: PairRate) -> float:
    """Operations of a step over all ranks, forward and backward, padding and masked pairs out."""
    pairs = StepPairs(
        update=rate.update * counts.tokens, summarize=rate.summarize * counts.summaries
    )
    return training_flops(config, counts.tokens, counts.summaries, pairs)


def _reads_of(group: Any) -> Callable[[Label, Label], Tensor]:
    return lambda q, k: token_reads(group, q, k)


def _labels(piece: Tensor, layout: Layout) -> Label:
    is_summary = piece is layout.piece_BS
    time = torch.arange(piece.shape[1], dtype=torch.int32).expand_as(piece)
    absent = torch.full_like(piece, -1)
    return Label(
        piece,
        layout.bar_BS if is_summary else layout.bar_BT,
        absent if is_summary else layout.instrument_BT,
        absent if is_summary else layout.index_BT,
        time,
        torch.full_like(piece, is_summary, dtype=torch.bool),
    )


def _keys_per_query(
    reads: Callable[[Label, Label], Tensor], queries: Label, keys: Label, num_queries: int
) -> float:
    row, column = torch.nonzero(queries.piece >= 0, as_tuple=True)
    if not len(row):
        return 0.0
    chosen = torch.linspace(0, len(row) - 1, min(num_queries, len(row))).long()
    row, column = row[chosen], column[chosen]
    q = Label(*(field[row, column][:, None] for field in queries))
    k = Label(*(field[row] for field in keys))
    return float(reads(q, k).sum()) / len(row)
