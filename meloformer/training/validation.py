"""Nats per token, per note and per kind of token, over all ranks, weighted by tokens."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.training.loss import token_nats
from meloformer.training.nats import KindTotals, Nats
from meloformer.training.ranks import Ranks


def validate(predict: Callable[[Batch], Tensor], batches: Iterable[Batch], ranks: Ranks) -> Nats:
    """Score batches that are shared out over the ranks.

    Sums and counts are added over ranks before anything is divided, so that neither a short
    batch nor a short rank weighs more than its tokens.

    Args:
        predict: (B, T, V) logits of a batch on the ranks' device.
        batches: this rank's share, the same number on all ranks.
        ranks: the started processes.
    """
    totals = KindTotals(ranks)
    for batch in batches:
        batch = batch.to(ranks.device)
        with torch.no_grad():
            totals.add(token_nats(predict(batch), batch.targets_BT), batch)
    _, nats, _ = totals.over_ranks()
    return nats
