"""Where DeepSpeed keeps this rank's part of the weights and of the optimizer's state.

It flattens the parameters of a group, pads them, cuts them among the ranks and moves the cuts in
fp32; each of its optimizers does so in its own way. The classes here say of every cut which
elements of which parameter it holds: all that is needed to write them down for, and to read them
back on, any number of ranks under any stage. Like gradients.py they reach into DeepSpeed's
internals; the version is pinned and tests carry a run through every stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from meloformer.training.ema import AVERAGE, WeightAverage

WEIGHT = "weight"


@dataclass(frozen=True)
class Fragment:
    """A run of elements of one parameter within a rank's partition.

    Args:
        name: of the parameter.
        shape: of the whole parameter.
        start: first element of the flattened parameter.
        length: number of elements.
        offset: where they stand in the partition.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    offset: int


@dataclass(frozen=True)
class Partition:
    """The cut of one group of parameters that this rank holds.

    Args:
        weights: (N,) the cut, in the precision in which the optimizer moves it.
        names: every parameter of the group, whether this rank holds any of it or not.
        fragments: what the cut holds; the rest of it is padding.
        optimizer: who moves it; None for what is not trained.
        is_fused: whether the optimizer counts its steps on the device.
        is_written: whether this rank's copy goes into a checkpoint.
        average: (N,) of the cut; None where none is kept.
        num_averaged: updates that it is an average of.
    """

    weights: torch.Tensor
    names: tuple[str, ...]
    fragments: tuple[Fragment, ...]
    optimizer: torch.optim.Optimizer | None = None
    is_fused: bool = False
    is_written: bool = True
    average: torch.Tensor | None = None
    num_averaged: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and what is kept of the same length: Adam's two moments, the average."""
        state = {} if self.optimizer is None else self.optimizer.state.get(self.weights, {})
        moments = {
            kind: value
            for kind, value in state.items()
            if torch.is_tensor(value) and value.shape == self.weights.shape
        }
        average = {} if self.average is None else {AVERAGE: self.average}
        return {WEIGHT: self.weights.detach()} | moments | average

    def scalars(self) -> dict[str, float]:
        """What the optimizer counts, such as its steps."""
        state = {} if self.optimizer is None else self.optimizer.state.get(self.weights, {})
        return {
            kind: float(value)
            for kind, value in state.items()
            if not torch.is_tensor(value) or value.shape != self.weights.shape
        }

    def new_state(self, kinds: set[str], scalars: dict[str, float]) -> dict[str, torch.Tensor]:
        """Replace the optimizer's state.

        Args:
            kinds: of tensors as long as the partition.
            scalars: values of the others.

        Returns:
            The new tensors, all zero; padding stays so.
        """
        assert self.optimizer is not None
        moments = {kind: torch.zeros_like(self.weights.detach()) for kind in kinds}
        device = self.weights.device if self.is_fused else torch.device("cpu")
        counts = {
            kind: torch.full((), value, dtype=torch.float32, device=device)
            for kind, value in scalars.items()
        }
        self.optimizer.state[self.weights] = {**counts, **moments}
        return moments


@dataclass
class Partitions(ABC):
    """What this rank holds of the whole model.

    Args:
        engine: from `deepspeed.initialize`.
        rank: this process, among those that share the parameters.

    Attributes:
        average: of the trained partitions' weights; None where none is kept.
    """

    engine: Any
    rank: int
    average: WeightAverage | None = field(init=False, default=None)
    _names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        module: nn.Module = self.engine.module
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which wraps ours."""
        return self.engine.optimizer

    def all(self) -> list[Partition]:
        """Trained partitions in the optimizer's order, then what is not trained."""
        trained = list(self._trained())
        if self.average is not None:
            trained = [
                replace(partition, average=average, num_averaged=self.average.num_updates)
                for partition, average in zip(trained, self.average.tensors, strict=True)
            ]
        known = {name for partition in trained for name in partition.names}
        return [*trained, *self._untrained(known)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of everything that is part of the model, each tensor under one name."""
        return {name: tuple(getattr(v, "ds_shape", v.shape)) for name, v in self.members()}

    def members(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters, then the buffers that are part of the model; under stage 3 not whole."""
        module: nn.Module = self.engine.module
        yield from module.named_parameters()
        seen = set(self._names)
        for name, value in module.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value

    @abstractmethod
    def _trained(self) -> Iterator[Partition]:
        """One partition per group."""

    def trained_weights(self) -> list[torch.Tensor]:
        """The cuts that the optimizer moves, in its order."""
        return [partition.weights for partition in self._trained()]

    @abstractmethod
    def share(self) -> None:
        """Share the weights of all partitions, after they were changed; collective."""

    def refresh(self) -> None:
        """Share weights and take new optimizer state, after both were loaded; collective."""
        self.share()

    def _untrained(self, trained: set[str]) -> Iterator[Partition]:
        """Frozen parameters and buffers, whole on every rank: the first one writes them."""
        for name, value in self.members():
            if name not in trained:
                yield self._whole(name, value)

    def _whole(self, name: str, value: torch.Tensor) -> Partition:
        fragment = Fragment(name, tuple(value.shape), 0, value.numel(), 0)
        flat = value.data.view(-1)
        return Partition(flat, (name,), (fragment,), is_written=self.rank == 0)

    def _cut(
        self, index: int, weights: torch.Tensor, parameters: list, offsets: list[int]
    ) -> Partition:
        """A group that was laid out in a row and cut into equal lengths."""
        begin = self.rank * weights.numel()
        fragments = []
        for parameter, offset in zip(parameters, offsets, strict=True):
            first = max(offset, begin)
            length = min(offset + parameter.numel(), begin + weights.numel()) - first
            if length > 0:
                name, shape = self._names[id(parameter)], tuple(parameter.shape)
                fragments.append(Fragment(name, shape, first - offset, length, first - begin))
        group = self.zero.optimizer.param_groups[index]
        return Partition(
            weights,
            tuple(self._names[id(parameter)] for parameter in parameters),
            tuple(fragments),
            self.zero.optimizer,
            _is_fused(group),
        )


class PartitionedGroups(Partitions):
    """Stages 1 and 2, offloaded to the host or not."""

    def _trained(self) -> Iterator[Partition]:
        zero = self.zero
        # In the order in which they lie in a row, which an option makes another than the group's.
        for i, weights in enumerate(zero.single_partition_of_fp32_groups):
            yield self._cut(
                i, weights, zero.round_robin_bit16_groups[i], zero.round_robin_bit16_offsets[i]
            )

    def share(self) -> None:
        self.zero.update_lp_params()

    def refresh(self) -> None:
        _link_again(self.zero)
        self.share()


class WholeGroups(Partitions):
    """Stage 1 in bf16: another optimizer, laid out without gaps."""

    def _trained(self) -> Iterator[Partition]:
        for i, weights in enumerate(self.zero.fp32_groups_flat_partition):
            parameters = self.zero.bf16_groups[i]
            offsets = [0]
            for parameter in parameters:
                offsets.append(offsets[-1] + parameter.numel())
            yield self._cut(i, weights, parameters, offsets[:-1])

    def share(self) -> None:
        self.zero.update_lp_params()

    def refresh(self) -> None:
        _link_again(self.zero)
        self.share()


class ShardedParameters(Partitions):
    """Stage 3: every parameter is cut by itself, and cuts of several lie in a row."""

    def _trained(self) -> Iterator[Partition]:
        zero = self.zero
        for i, weights in enumerate(zero.fp32_partitioned_groups_flat):
            fragments, offset = [], 0
            for parameter in zero.fp16_groups[i]:
                size = parameter.partition_numel()
                fragments += self._of_cut(parameter, size, offset)
                offset += size
            group_index = zero.sub_group_to_group_id[i]
            # Where a share of the optimizer stays on the device, that share has its own.
            is_moved = zero.offload_optimizer and zero.subgroup_to_device[i] != "cpu"
            optimizer = zero.backup_optimizer if is_moved else zero.optimizer
            yield Partition(
                weights,
                tuple(self._names[id(parameter)] for parameter in zero.fp16_groups[i]),
                tuple(fragments),
                optimizer,
                _is_fused(optimizer.param_groups[group_index]),
            )

    def _of_cut(self, parameter: Any, size: int, offset: int) -> list[Fragment]:
        start = self.rank * size
        length = min(size, parameter.ds_numel - start)
        if length <= 0:
            return []
        name, shape = self._names[id(parameter)], tuple(parameter.ds_shape)
        return [Fragment(name, shape, start, length, offset)]

    def _whole(self, name: str, value: torch.Tensor) -> Partition:
        if not hasattr(value, "ds_tensor"):
            return super()._whole(name, value)
        cut = value.ds_tensor.data
        return Partition(cut, (name,), tuple(self._of_cut(value, cut.numel(), 0)))

    def share(self) -> None:
        zero = self.zero
        # As DeepSpeed's own step ends: small parameters stay whole between steps, and would keep
        # their old values.
        zero._partition_all_parameters()
        for i in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        zero.checkpoint_event_epilogue()


def _is_fused(group: dict) -> bool:
    return bool(group.get("fused") or group.get("capturable"))


def _link_again(zero: Any) -> None:
    """Let DeepSpeed find the new state tensors; it keeps views of the ones before."""
    zero._hp_optimizer_states_linked = False
    if any(zero.optimizer.state.values()):
        zero._lazy_init_hp_params_optimizer_state()


def find_partitions(engine: Any, stage: int, rank: int) -> Partitions:
    """What a rank holds of a DeepSpeed engine.

    Args:
        engine: from `deepspeed.initialize`.
        stage: ZeRO stage, 1 to 3.
        rank: this process.
    """
    if stage == 3:
        return ShardedParameters(engine, rank)
    if hasattr(engine.optimizer, "single_partition_of_fp32_groups"):
        return PartitionedGroups(engine, rank)
    return WholeGroups(engine, rank)
