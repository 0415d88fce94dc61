"""What the judge must not tell a bridge."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from meloformer.evaluation.control import find_pieces
from meloformer.evaluation.control_rows import JudgedPiece
from meloformer.evaluation.control_scores import Wanted
from meloformer.evaluation.control_settings import ControlJudgeConfig

NUM_PIECES = 20


class Counting:
    """A bridge that is deaf: its answers say how many bars it was asked for, and nothing else."""

    bridge = SimpleNamespace(mean_D=torch.zeros(NUM_PIECES), std_D=torch.ones(NUM_PIECES))

    def summaries(self, sections: Sequence[tuple[str, int]], *, seed: int) -> Tensor:
        num_bars = sum(bars for _, bars in sections)
        return torch.eye(NUM_PIECES)[num_bars - 1].expand(num_bars, -1)


def test_who_hears_nothing_but_the_length_of_a_piece_does_not_find_it() -> None:
    pieces = [
        JudgedPiece(
            name=("test", f"key{bars}", 0, bars),
            ids=np.zeros(0, np.uint16),
            text="calm",
            template="t",
            wanted=Wanted(),
        )
        for bars in range(1, NUM_PIECES + 1)
    ]
    own = [Counting().summaries([("", piece.num_bars)], seed=0) for piece in pieces]
    config = ControlJudgeConfig(bars=NUM_PIECES)
    found = find_pieces(Counting(), pieces, own, config, seed=0)  # type: ignore[arg-type]
    assert found.first.mean == 1 / NUM_PIECES, "the one that is as long as was asked"
