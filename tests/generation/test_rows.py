"""A row of a batch: what it draws with."""

import numpy as np
import torch

from meloformer.generation.controls import ControlConfig
from meloformer.generation.piece_mask import PieceMask
from meloformer.generation.rows import Row
from meloformer.generation.sliding import Context


def test_a_row_draws_the_numbers_that_its_seed_gives_one_by_one() -> None:
    """They are made ahead, of several batches; told tokens use none up."""
    controls = ControlConfig(bars=2)
    prefix = controls.prefix().astype(np.int64)
    row = Row(prefix, PieceMask(prefix.tolist(), controls.wishes), Context(1024, 2), seed=9)
    assert [row.draw(), row.draw()] == [0.0, 0.0]
    row.ids.extend(prefix.tolist())
    dice = torch.Generator().manual_seed(9)
    expected = [torch.rand((), generator=dice).item() for _ in range(200)]
    assert [row.draw() for _ in range(200)] == expected
