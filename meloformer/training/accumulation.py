"""The gradient of a step: its micro-batches are counted over all ranks, then added up."""

from collections.abc import Sequence

from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.training.loss import share_of_step, token_nats
from meloformer.training.nats import KindTotals
from meloformer.training.session import Session
from meloformer.training.step import StepCounts, count_step


def read_step(session: Session, step: int) -> tuple[Sequence[Batch], StepCounts]:
    """Take the next step: the micro-batches of this rank, and what the step holds on all ranks.

    Args:
        session: a run in motion.
        step: its number, for messages.
    """
    clock, ranks = session.clock, session.ranks
    session.stalls.at(f"the data of step {step}", is_slow=False)
    micro_batches = clock.wait_for(session.stream)
    session.stalls.at(f"the count of step {step}")
    return micro_batches, count_step(micro_batches, clock.wait_seconds, ranks, clock.own_seconds)


def add_up_gradients(
    session: Session,
    step: int,
    micro_batches: Sequence[Batch],
    counts: StepCounts,
    kinds: KindTotals,
) -> list[Tensor]:
    """Forward and backward pass of each micro-batch.

    Args:
        session: a run in motion; its engine holds the gradient afterwards.
        step: its number, for messages.
        micro_batches: of this rank.
        counts: of all ranks: one count for all micro-batches, so that how the batch is cut cannot
            change the gradient.
        kinds: takes the likelihood of each token.

    Returns:
        The share of each micro-batch in the loss, scalars on the device.
    """
    ranks, losses = session.ranks, []
    for batch in (batch.to(ranks.device) for batch in micro_batches):
        with session.watch(f"step {step}", batch):
            # No name for the logits: held through the backward pass they would cost memory.
            nats_BT = token_nats(session.predict(batch), batch.targets_BT, fuse=session.fuse)
            kinds.add(nats_BT, batch)
            share = share_of_step(nats_BT, counts.targets, ranks.world_size)
            losses.append(session.engine.backward(share))
    return losses
