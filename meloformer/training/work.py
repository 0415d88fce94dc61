"""How much a step computes, for its share of the device's peak (MFU)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.dense_masks import labels_of
from meloformer.model.masks import (
    Label,
    Layout,
    Rule,
    open_reads_open,
    rule_of,
    summary_reads,
    token_reads,
    token_reads_open,
)
from meloformer.training.step import StepCounts

SAMPLED_QUERIES = 128


@dataclass(frozen=True, kw_only=True)
class PairRate:
    """Query-key pairs that a rule allows, per query; padding is no query.

    Args:
        update: keys that a token reads, mean over key/value heads.
        summarize: keys that a summary reads.
        opened: tokens and open summaries that read an open summary, of any bar, had all of them
            one: whether they have is drawn anew in every step.
    """

    update: float
    summarize: float
    opened: float = 0.0


def pair_rate(layout: Layout, rule: Rule, num_queries: int = SAMPLED_QUERIES) -> PairRate:
    """Count the allowed keys of some queries, spread evenly over the rows of a batch.

    Args:
        layout: labels on the CPU.
        rule: head groups.
        num_queries: queries to look at, tokens and summaries each.
    """
    tokens, summaries = labels_of(layout)
    keys = Label(*(torch.cat(pair, dim=1) for pair in zip(summaries, tokens, strict=True)))
    shares = sum(group.share for group in rule)
    update = sum(
        group.share / shares * _keys_per_query(_reads_of(group), tokens, keys, num_queries)
        for group in rule
    )
    # Looked at from the side of what is read: a bar hardly differs from the next, but a token of a
    # prefix reads every bar.
    readers = _keys_per_query(lambda k, q: token_reads_open(q, k), summaries, tokens, num_queries)
    return PairRate(
        update=update,
        summarize=_keys_per_query(summary_reads, summaries, keys, num_queries),
        opened=readers + _keys_per_query(open_reads_open, summaries, summaries, num_queries),
    )


class PairRates:
    """Pair rates by row length: rows of one length are alike, and a step may mix lengths.

    Args:
        rule: head groups.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._of_length: dict[int, PairRate] = {}

    def of_step(self, micro_batches: Sequence[Batch], *, refresh: bool = False) -> PairRate:
        """Mean over the queries of a step.

        Args:
            micro_batches: on the CPU.
            refresh: count again for the lengths of this step, known or not.
        """
        if refresh:
            for batch in micro_batches:
                self._of_length.pop(batch.ids_BT.shape[1], None)
        update, summarize, opened, tokens, summaries = 0.0, 0.0, 0.0, 0, 0
        for batch in micro_batches:
            num_tokens = int((batch.layout.piece_BT >= 0).sum())
            if not num_tokens:
                continue  # no row here: all padding, of which no rate can be learned
            num_summaries = int((batch.layout.piece_BS >= 0).sum())
            length = batch.ids_BT.shape[1]
            if length not in self._of_length:
                self._of_length[length] = pair_rate(batch.layout, self._rule)
            rate = self._of_length[length]
            update += rate.update * num_tokens
            summarize += rate.summarize * num_summaries
            opened += rate.opened * num_summaries
            tokens += num_tokens
            summaries += num_summaries
        summaries = max(summaries, 1)
        return PairRate(
            update=update / max(tokens, 1),
            summarize=summarize / summaries,
            opened=opened / summaries,
        )


def layout_flops(config: MuseFormerConfig, layout: Layout) -> float:
    """Operations of some rows, forward and backward, padding and masked pairs out.

    Args:
        config: the model; its rows have open summaries as often as in training.
        layout: labels of the rows, on the CPU.
    """
    tokens, summaries = (int((x >= 0).sum()) for x in (layout.piece_BT, layout.piece_BS))
    num_open = config.open_summary_rate * summaries
    rate = pair_rate(layout, rule_of(config.rule))
    pairs = StepPairs(
        update=rate.update * tokens,
        summarize=rate.summarize * summaries,
        opened=rate.opened * num_open,
    )
    return training_flops(config, tokens, summaries, pairs, num_open)


def step_flops(config: MuseFormerConfig, counts: StepCounts, rate: PairRate) -> float:
    """Operations of a step over all ranks, forward and backward, padding and masked pairs out."""
    pairs = StepPairs(
        update=rate.update * counts.tokens,
        summarize=rate.summarize * counts.summaries,
        opened=rate.opened * counts.open_summaries,
    )
    return training_flops(config, counts.tokens, counts.summaries, pairs, counts.open_summaries)


def _reads_of(group: Any) -> Callable[[Label, Label], Tensor]:
    return lambda q, k: token_reads(group, q, k)


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
