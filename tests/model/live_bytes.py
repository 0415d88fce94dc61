"""Counting what torch really holds: tensors kept for the backward pass, and all that are alive."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept_bytes(function: Callable[[], object], leave_out: Callable[[Tensor], bool]) -> int:
    """Bytes of the storages that autograd keeps at the end of a function, each counted once.

    Args:
        function: a forward pass; its result is held until the count is over.
        leave_out: tensors that are not to count.
    """
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        if not leave_out(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # or its place would be taken by another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made while it is active, now and at most.

    What a kernel takes and gives back inside itself is not seen.

    Args:
        older: tensors made before, which are not to count when a view of them is made.
    """

    def __init__(self, older: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in older}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

        def forget() -> None:
            self._known.discard(key)
            self.now -= num_bytes

        weakref.finalize(storage, forget)
