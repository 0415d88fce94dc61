"""Bases for tests of bridges: MuseFormers of the smallest size, never trained."""

import torch

from meloformer.model.museformer import MuseFormer
from tests.layouts import tiny_config


def random_base(seed: int = 0, **changes: object) -> MuseFormer:
    """Its weights are large enough for summaries to differ from bar to bar."""
    torch.manual_seed(seed)
    model = MuseFormer(tiny_config(**{"max_seq_len": 512, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return model
