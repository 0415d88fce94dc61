"""Token cross entropy, summed: means are taken once, over the whole global batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.model import fused


def token_nats(logits_BTV: Tensor, targets_BT: Tensor, *, fuse: bool = False) -> Tensor:
    """Cross entropy of every target, (B, T) float32, 0 where there is none.

    Args:
        logits_BTV: of any precision; taken in float32.
        targets_BT: ids of the next token, `IGNORE_INDEX` for padding and the ends of windows.
        fuse: compile it, for training; see model/fused.py.
    """
    if fuse:
        return fused.token_nats(logits_BTV, targets_BT, IGNORE_INDEX)
    # Row by row: the float32 copy of a row is a fraction of the batch's.
    rows = [
        F.cross_entropy(logits_TV.float(), targets_T, ignore_index=IGNORE_INDEX, reduction="none")
        for logits_TV, targets_T in zip(logits_BTV, targets_BT, strict=True)
    ]
    return torch.stack(rows)


def share_of_step(nats_BT: Tensor, num_targets: float, world_size: int) -> Tensor:
    """Share of one micro-batch in the loss of a step.

    The engine averages gradients over ranks and adds them over micro-batches, so that with this
    scale the gradient of a step is that of the mean over all its targets, however the batch is
    cut. A row without targets weighs nothing and stays in the graph: all ranks run the same
    backward.

    Args:
        nats_BT: of one micro-batch; see `token_nats`.
        num_targets: targets of all micro-batches of all ranks.
        world_size: number of ranks.
    """
    return nats_BT.sum() * (world_size / num_targets)


def step_loss(
    logits_BTV: Tensor,
    targets_BT: Tensor,
    num_targets: float,
    world_size: int,
    *,
    fuse: bool = False,
) -> Tensor:
    """`share_of_step` from the logits, for those who do not look at single tokens."""
    return share_of_step(token_nats(logits_BTV, targets_BT, fuse=fuse), num_targets, world_size)
