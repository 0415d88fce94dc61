"""Nats per token, per note and per kind of token, over all ranks, weighted by tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.training.loss import token_nats
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Nats:
    """Likelihood of a data set.

    Args:
        per_token: mean over all targets.
        per_note: nats of all targets inside bars (notes and the headers that announce them; not
            the prefix), over the number of notes: independent of how many tokens say a note.
        per_kind: mean over the targets of one kind, for kinds that occur.
        num_targets: targets counted.
        num_notes: PITCH targets counted.
    """

    per_token: float
    per_note: float
    per_kind: dict[str, float]
    num_targets: int
    num_notes: int


def validate(predict: Callable[[Batch], Tensor], batches: Iterable[Batch], ranks: Ranks) -> Nats:
    """Score batches that are shared out over the ranks.

    Sums and counts are added over ranks before anything is divided, so that neither a short
    batch nor a short rank weighs more than its tokens.

    Args:
        predict: (B, T, V) logits of a batch on the ranks' device.
        batches: this rank's share, the same number on all ranks.
        ranks: the started processes.
    """
    device = ranks.totals_device
    kind_of_V = torch.from_numpy(KIND_OF).long().to(device)
    nats_K = torch.zeros(len(Kind), dtype=torch.float64, device=device)
    count_K = torch.zeros_like(nats_K)
    nats_in_bars = torch.zeros(1, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(ranks.device)
        with torch.no_grad():
            nats_BT = token_nats(predict(batch), batch.targets_BT).to(device).double()
        targets_BT = batch.targets_BT.to(device)
        is_target_BT = targets_BT != IGNORE_INDEX
        nats = nats_BT[is_target_BT]
        kinds = kind_of_V[targets_BT[is_target_BT]]
        nats_K.index_add_(0, kinds, nats)
        count_K.index_add_(0, kinds, torch.ones_like(nats))
        # The target at t is the token at t + 1, which says where it stands.
        bar_of_target_BT = batch.layout.bar_BT.to(device).roll(-1, dims=1)
        nats_in_bars += nats_BT[is_target_BT & (bar_of_target_BT >= 0)].sum()
    total = ranks.sum_tensor(torch.cat([nats_K, count_K, nats_in_bars])).tolist()
    nats_by_kind, count_by_kind = total[: len(Kind)], total[len(Kind) : -1]
    num_notes = count_by_kind[Kind.PITCH]
    return Nats(
        per_token=sum(nats_by_kind) / max(sum(count_by_kind), 1),
        per_note=total[-1] / max(num_notes, 1),
        per_kind={
            kind.name: nats_by_kind[kind] / count_by_kind[kind]
            for kind in Kind
            if count_by_kind[kind]
        },
        num_targets=int(sum(count_by_kind)),
        num_notes=int(num_notes),
    )
