"""A row of tokens on which an export is compared with what it was made of."""

import torch

from meloformer.generation.controls import ControlConfig
from meloformer.tokens.vocabulary import OFFSET, Kind

_PROBE_BARS = 4


def probe_ids() -> torch.Tensor:
    """(1, T) a prefix and some bars with tokens of every kind, always the same."""
    ids = ControlConfig(bars=_PROBE_BARS, tempo=120.0, instruments=("0", "drums")).prefix().tolist()
    first = {kind: OFFSET[kind] for kind in Kind}
    for bar in range(_PROBE_BARS):
        ids.append(first[Kind.BAR] + bar)
        ids += [first[Kind.METRE], first[Kind.TEMPO]] if bar == 0 else []
        for instrument in (0, 1):
            ids += [first[Kind.INSTRUMENT] + instrument, first[Kind.ONSET] + bar]
            ids += [first[Kind.PITCH] + 60 + bar, first[Kind.DURATION], first[Kind.VELOCITY] + 1]
    return torch.tensor([ids])
