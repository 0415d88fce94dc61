"""From a bridge's own width to that of the model it speaks to."""

from torch import nn


def build_projection(width: int, summary_width: int) -> nn.Module:
    """A linear map where the widths differ, and nothing where they agree.

    Its parameters are counted apart: they belong to the pair of models, not to the bridge.

    Args:
        width: of the bridge.
        summary_width: of the base's summaries.

    >>> build_projection(512, 512)
    Identity()
    >>> sum(p.numel() for p in build_projection(512, 768).parameters())
    393984
    """
    return nn.Identity() if width == summary_width else nn.Linear(width, summary_width)
