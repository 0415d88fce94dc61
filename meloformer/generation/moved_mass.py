"""Where the probability of forbidden tokens goes: to tokens that say much the same.

A mask that only strikes out shares the probability of what it strikes among all that is left. In
the last wished bar, where no further bar may come, a model that is sure that the bar is over would
then hardly ever end it: whatever little it gave to one more note would be all there is. So the
token of a next bar and the end of the piece stand for each other, and a forbidden instrument for
the others and for the end of the bar, since all of these leave the current one.
"""

import numpy as np
import torch
from torch import Tensor

from meloformer.tokens.vocabulary import EOS, KIND_OF, Kind

_ENDS_BAR = KIND_OF == Kind.BAR
_ENDS_BAR[EOS] = True
_LEAVES_INSTRUMENT = _ENDS_BAR | (KIND_OF == Kind.INSTRUMENT)
# From the narrower to the wider: what finds no room in one is left to the next.
_GROUPS = tuple(torch.from_numpy(np.flatnonzero(of)) for of in (_ENDS_BAR, _LEAVES_INSTRUMENT))


def move_mass(logits_BV: Tensor, allowed_BV: Tensor) -> Tensor:
    """Give what forbidden tokens of a group have to its allowed ones, in proportion.

    Args:
        logits_BV: scores of the next token.
        allowed_BV: bool, on the CPU.

    Returns:
        (B, V) float32 on the CPU, another tensor; -inf for forbidden tokens of a group that has
        an allowed one. A group without is left to the mask.
    """
    moved_BV = logits_BV.float().cpu().clone()
    for group_G in _GROUPS:
        found_BG = moved_BV[:, group_G]
        kept_BG = found_BG.masked_fill(~allowed_BV[:, group_G], -torch.inf)
        total_B1 = found_BG.logsumexp(dim=1, keepdim=True)
        left_B1 = kept_BG.logsumexp(dim=1, keepdim=True)
        has_room_B1 = left_B1 > -torch.inf
        moved_BV[:, group_G] = torch.where(has_room_B1, kept_BG + (total_B1 - left_B1), found_BG)
    return moved_BV
