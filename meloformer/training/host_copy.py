"""One moment of a rank's part of the run, copied to the host, while training goes on."""

from collections.abc import Iterable

import torch

from meloformer.training.partitions import Partition
from meloformer.training.parts import Part, cut_part, join_parts


class HostCopy:
    """Host memory for one moment, kept for the next one.

    On a GPU it is page-locked, and the copies are queued behind the step that has been computed and
    ahead of the next: this process does not wait for them. No tensor is copied on the device, so
    that its peak stays what training takes.

    Args:
        device: where the tensors lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_pinned = device.type == "cuda"
        self._held: dict[str, torch.Tensor] = {}
        self._end: torch.cuda.Event | None = None

    def copy(
        self,
        partitions: list[Partition],
        whole: Iterable[tuple[str, torch.Tensor]],
        averaged: Iterable[tuple[str, torch.Tensor]] = (),
    ) -> Part:
        """Start to copy; the result may be read after `wait`.

        Args:
            partitions: of this rank.
            whole: whole weights under their names, for `weights`; may be made one after another.
            averaged: the same of their moving averages, for `averaged`; made after `whole`.
        """
        parts = []
        # Before the first copy: reading a count on a GPU waits for all that is queued there.
        scalars = [partition.scalars() for partition in partitions]
        for index, partition in enumerate(partitions):
            if partition.is_written:
                host = {
                    kind: self._hold(f"{index}/{kind}", tensor)
                    for kind, tensor in partition.tensors().items()
                }
                parts.append(cut_part(partition, host, scalars[index]))
        self.weights = {name: self._hold(f"whole/{name}", tensor) for name, tensor in whole}
        self.averaged = {name: self._hold(f"averaged/{name}", tensor) for name, tensor in averaged}
        if self._is_pinned:
            self._end = torch.cuda.Event()
            self._end.record()
        return join_parts(parts)

    def wait(self) -> None:
        """Wait until everything is there."""
        if self._end is not None:
            # A thread of its own is on the first GPU, and waiting there would take memory of it.
            with torch.cuda.device(self._device):
                self._end.synchronize()

    def _hold(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._is_pinned)
            self._held[key] = held
        held.copy_(tensor, non_blocking=self._is_pinned)
        return held
