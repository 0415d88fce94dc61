"""How likely a model finds held-out pieces, by how much of them it reads at once.

For each context length the pieces are cut at bar lines into windows that it holds; every note is
scored once at each length, so that the lengths differ in nothing but what a note may read.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator, collate_rows
from meloformer.batches.windows import Windows, cut_long_pieces
from meloformer.evaluation.control_intervals import Interval, interval
from meloformer.evaluation.judged_pieces import HeldOut
from meloformer.evaluation.likelihood import row_length
from meloformer.model.attention import build_plan
from meloformer.model.masks import num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import KIND_OF, Kind, is_kind
from meloformer.training.loss import token_nats
from meloformer.training.nats import KindTotals, Nats
from meloformer.training.ranks import Ranks

# Lengths that are scored, in tokens, as far as model and pieces reach.
LENGTHS = (1024, 2048, 4096, 8192, 16384)
# Tokens of rows that are scored at once.
_TOKENS_AT_ONCE = 8192

OnWindows = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LengthNats:
    """Likelihood of the pieces at one context length.

    Args:
        length: most tokens that a token is read with, itself included.
        nats: over all tokens; per_note is over all notes.
        per_note: nats per note of each piece, as a mean over pieces.
        num_windows: windows that the pieces were cut into.
    """

    length: int
    nats: Nats
    per_note: Interval
    num_windows: int


def lengths_for(
    max_seq_len: int, longest_piece: int, lengths: Sequence[int] = LENGTHS
) -> list[int]:
    """Context lengths that can be told apart: up to the model's, and to the first that holds all.

    >>> lengths_for(8192, 3000), lengths_for(6000, 50000), lengths_for(512, 9000)
    ([1024, 2048, 4096], [1024, 2048, 4096, 6000], [512])
    """
    allowed = [length for length in lengths if length < max_seq_len] + [max_seq_len]
    needed = [length for length in allowed if length < longest_piece]
    return allowed[: len(needed) + 1]


def likelihood_by_length(
    model: MuseFormer,
    drawn: Sequence[HeldOut],
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    on_windows: OnWindows = lambda done, total: None,
) -> list[LengthNats]:
    """Score pieces at every length that model and pieces reach.

    Args:
        model: in evaluation mode; scored on its device.
        drawn: pieces, their attributes all told.
        seed: of the intervals.
        lengths: that are scored, as far as model and pieces reach.
        on_windows: told how far it is.

    Raises:
        BatchError: a single bar is longer than the shortest length.
    """
    longest = max(one.index.sizes(one.piece).tokens for one in drawn)
    told_apart = lengths_for(model.config.max_seq_len, longest, lengths)
    cut = {length: _windows(drawn, length) for length in told_apart}
    total, done = sum(len(windows) for windows in cut.values()), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        on_windows(done, total)

    return [_score(model, length, windows, seed, tell) for length, windows in cut.items()]


def _windows(drawn: Sequence[HeldOut], length: int) -> list[tuple[int, np.ndarray]]:
    """Number of its piece and token ids of every window."""
    found = []
    for number, one in enumerate(drawn):
        collator = Collator(index=one.index, attributes=ALL_ATTRIBUTES)
        sizes = one.index.sizes(one.piece)
        whole = Windows.whole(
            *(np.array([value]) for value in (one.piece, sizes.tokens, sizes.bars))
        )
        for sized in cut_long_pieces(one.index, whole, length, num_summaries(length)):
            found.append((number, collator.window_ids(0, sized.window)))
    return found


def _score(
    model: MuseFormer,
    length: int,
    windows: Sequence[tuple[int, np.ndarray]],
    seed: int,
    tell: Callable[[int], None],
) -> LengthNats:
    device = model.token_embedding.weight.device
    rule = rule_of(model.config.rule)
    totals = KindTotals(Ranks(rank=0, local_rank=0, world_size=1, device=device))
    of_piece: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2))
    in_order = sorted(windows, key=lambda window: len(window[1]))
    while in_order:
        # The longest first: what does not fit fails at once.
        row = row_length([in_order[-1][1]])
        at_once = max(_TOKENS_AT_ONCE // row, 1)
        chosen, in_order = in_order[-at_once:], in_order[:-at_once]
        ids = [window for _, window in chosen]
        batch = collate_rows([[one] for one in ids], row_length(ids)).to(device)
        with torch.no_grad():
            logits_BTV = model(batch.ids_BT, batch.layout, build_plan(batch.layout, rule))
            nats_BT = token_nats(logits_BTV, batch.targets_BT)
        totals.add(nats_BT, batch)
        for (piece, window), nats in zip(chosen, _in_bars(nats_BT, batch).tolist(), strict=True):
            notes = int(is_kind(KIND_OF[window], Kind.PITCH).sum())
            of_piece[piece] += (nats, notes)
        tell(len(chosen))
    _, nats, _ = totals.over_ranks()
    pieces = np.array([of_piece[piece] for piece in sorted(of_piece)])
    return LengthNats(
        length=length,
        nats=nats,
        per_note=interval(pieces[:, 0] / pieces[:, 1], seed=seed, is_share=False),
        num_windows=len(windows),
    )


def _in_bars(nats_BT: Tensor, batch: Batch) -> Tensor:
    """(B,) nats of the targets that stand in bars: what comes before is no note's."""
    bar_of_target_BT = batch.layout.bar_BT.roll(-1, dims=1)
    return torch.where(bar_of_target_BT >= 0, nats_BT, 0.0).double().sum(dim=1)
