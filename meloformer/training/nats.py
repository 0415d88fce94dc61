"""Likelihood by kind of token: added up where the logits are, divided once for all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.tokens.vocabulary import KIND_OF, Kind
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


class KindTotals:
    """Nats and targets of each kind so far, on this rank.

    Nothing here waits for the device: a batch is added by masks and sums, so that counting the
    loss of a step by kind costs a few small kernels and no pause.

    Args:
        ranks: the started processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        device = ranks.totals_device
        self._kinds_K1 = torch.arange(len(Kind), device=device)[:, None]
        self._kind_of_V = torch.from_numpy(KIND_OF).to(device)
        # Nats of each kind, targets of each kind, nats inside bars.
        self._totals = torch.zeros(2 * len(Kind) + 1, dtype=torch.float64, device=device)

    def add(self, nats_BT: Tensor, batch: Batch) -> None:
        """Add a batch.

        Args:
            nats_BT: of its targets, 0 where there is none; see `token_nats`.
            batch: on the same device.
        """
        device = self._totals.device
        nats_BT, targets_BT = nats_BT.detach().to(device), batch.targets_BT.to(device)
        is_target_N = (targets_BT != IGNORE_INDEX).flatten()
        # Index 0 for what is no target: any kind will do, since the mask leaves it out.
        kinds_N = self._kind_of_V[targets_BT.clamp(min=0).flatten()]
        is_kind_KN = (kinds_N == self._kinds_K1) & is_target_N
        nats_KN = torch.where(is_kind_KN, nats_BT.flatten(), 0.0)
        # The target at t is the token at t + 1, which says where it stands.
        bar_of_target_BT = batch.layout.bar_BT.to(device).roll(-1, dims=1)
        nats_in_bars = torch.where(bar_of_target_BT >= 0, nats_BT, 0.0).sum(dtype=torch.float64)
        self._totals += torch.cat(
            [nats_KN.sum(1, dtype=torch.float64), is_kind_KN.sum(1), nats_in_bars[None]]
        )

    def over_ranks(
        self, losses: Sequence[Tensor] = (), own: Sequence[float] = ()
    ) -> tuple[float, Nats, list[float]]:
        """Totals of all ranks, and begin again at nothing; one collective.

        Args:
            losses: scalars of this rank that travel along.
            own: numbers of this rank that do too.

        Returns:
            The losses added up and averaged over ranks, not finite where one is not; the
            likelihood of everything added; and the sums of `own`.
        """
        device = self._totals.device
        loss = sum(
            (loss.detach().to(device).double() for loss in losses), self._totals.new_zeros(())
        )
        along = torch.cat([loss[None], loss.new_tensor(own)])
        total = self._ranks.sum_tensor(torch.cat([self._totals, along])).tolist()
        self._totals.zero_()
        num_kinds = len(Kind)
        nats_by_kind, count_by_kind = total[:num_kinds], total[num_kinds : 2 * num_kinds]
        nats_in_bars, loss_sum, *sums = total[2 * num_kinds :]
        num_notes = count_by_kind[Kind.PITCH]
        nats = Nats(
            per_token=sum(nats_by_kind) / max(sum(count_by_kind), 1),
            per_note=nats_in_bars / max(num_notes, 1),
            per_kind={
                kind.name: nats_by_kind[kind] / count_by_kind[kind]
                for kind in Kind
                if count_by_kind[kind]
            },
            num_targets=int(sum(count_by_kind)),
            num_notes=int(num_notes),
        )
        return loss_sum / self._ranks.world_size, nats, sums
