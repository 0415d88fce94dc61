"""One micro-batch of one rank, ready for the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meloformer.model.masks import Blocks, Layout

IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of B rows of T tokens and S summaries, and what they count.

    Args:
        ids_BT: int64 tokens; PAD where a row is over.
        targets_BT: int64, the next token of the same window; IGNORE_INDEX at its last token and at
            padding.
        layout: int32 labels.
        blocks: block lists, where the attention backend wants them.
        num_rows: rows that hold a window; the others weigh nothing.
        num_targets: targets that are not ignored.
        num_notes: PITCH tokens among them.
        open_seeds: of the noise of each row's open summaries, see model/injection.py; None for a
            row without any, empty where the layout has no room for them.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    layout: Layout
    blocks: Blocks | None
    num_rows: int
    num_targets: int
    num_notes: int
    open_seeds: tuple[int | None, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """Move all tensors; from pinned memory without waiting for the copy."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; the data loader calls it where CUDA follows."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Rebuild nested dataclasses and tuples with every tensor mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        mapped = {f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **mapped)
    return value
