"""Bytes that the ranks exchange in one optimizer step, by formula, for every ZeRO stage.

What DeepSpeed asks for, stage by stage, N parameters of the training precision each:

    stage 1   all-reduce N once a step, all-gather N after the update
    stage 2   all-reduce N in every micro-step, all-gather N after the update
    stage 3   all-gather the large weights and reduce-scatter N in every micro-step, all-gather the
              small weights after the update

Gradients are accumulated in fp32 and exchanged in the training precision. Stage 2 as it ships sends
every gradient to every rank: the owner alone would do (`use_multi_rank_bucket_allreduce` off), at
half of the bytes in more and smaller messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from meloformer.errors import ConfigError
from meloformer.interrupts import STOP_NAMES
from meloformer.model.config import MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import Kind
from meloformer.training.optimizer import OptimizerConfig, parameter_groups

Operation = Literal["all_reduce", "reduce", "all_gather", "reduce_scatter"]

# DeepSpeed's defaults of what a ds_configs file may set, in elements.
_DEFAULTS: dict[str, int] = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
# Partitions begin at multiples of so many elements.
_ALIGNMENT = 2


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Some collectives of one kind in a step.

    Args:
        operation: which.
        elements: of the whole tensors, all ranks' parts together, all calls together.
        element_bytes: of one element.
        calls: how many.
        purpose: what for.
    """

    operation: Operation
    elements: int
    element_bytes: int
    calls: int
    purpose: str

    @property
    def payload(self) -> int:
        """Bytes of the whole tensors."""
        return self.elements * self.element_bytes

    def bytes_sent(self, world_size: int) -> float:
        """Bytes that a rank sends, and as many that it receives, in a ring.

        Source: Patarasu and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
        workstations"; the same factors as in doc/PERFORMANCE.md of nccl-tests.
        """
        share = (world_size - 1) / world_size
        return self.payload * share * (2 if self.operation == "all_reduce" else 1)


def parameter_sizes(config: MuseFormerConfig) -> list[list[int]]:
    """Elements of every parameter, by group of the optimizer, in their order; nothing is built."""
    with torch.device("meta"):
        model = MuseFormer(config)
    groups = parameter_groups(model, OptimizerConfig().weight_decay)
    return [[parameter.numel() for parameter in group["params"]] for group in groups]


def step_traffic(
    groups: Sequence[Sequence[int]],
    ds_config: dict[str, Any],
    *,
    world_size: int,
    accumulation: int,
    is_bf16: bool,
) -> list[Collective]:
    """What the ranks exchange in an optimizer step that is not dropped.

    Left out: the first two steps of stage 3, in which DeepSpeed learns the order of the weights;
    validation, checkpoints, the start and the end of a run; what an offloaded optimizer moves
    between a GPU and its host.

    Args:
        groups: elements of the parameters, see `parameter_sizes`.
        ds_config: content of a ds_configs file.
        world_size: number of ranks.
        accumulation: micro-steps of an optimizer step.
        is_bf16: whether weights are bf16, else fp32.

    Returns:
        Nothing for a single rank.

    Raises:
        ConfigError: stage 3 does not keep the weights from the forward to the backward pass.
    """
    if world_size == 1:
        return []
    zero = _DEFAULTS | {"use_multi_rank_bucket_allreduce": True} | ds_config["zero_optimization"]
    stage, element_bytes = zero["stage"], 2 if is_bf16 else 4
    if stage == 3:
        moved = _sharded(groups, zero, world_size, accumulation, element_bytes)
    else:
        moved = _partitioned(groups, zero, world_size, accumulation, element_bytes)
    # step.count_step: five numbers and one per rank; nats.KindTotals: two per kind and two more,
    # and what ranks say on a stop.
    own = Collective(
        operation="all_reduce",
        elements=5 + world_size + 2 * len(Kind) + 2 + len(STOP_NAMES),
        element_bytes=8,
        calls=2,
        purpose="counts and loss",
    )
    return [*moved, own, *_decisions(stage, is_bf16)]


def _partitioned(
    groups: Sequence[Sequence[int]],
    zero: dict[str, Any],
    world_size: int,
    accumulation: int,
    element_bytes: int,
) -> list[Collective]:
    """Stages 1 and 2: every rank holds all weights."""
    num_parameters = sum(map(sum, groups))
    reductions = accumulation if zero["stage"] == 2 else 1
    buckets = -(-num_parameters // zero["reduce_bucket_size"])
    to_owner = zero["stage"] == 2 and not zero["use_multi_rank_bucket_allreduce"]
    padded = [_rounded_up(sum(group), _ALIGNMENT * world_size) for group in groups]
    return [
        Collective(
            operation="reduce" if to_owner else "all_reduce",
            elements=num_parameters * reductions,
            element_bytes=element_bytes,
            calls=reductions * (max(buckets, world_size) if to_owner else buckets),
            purpose="gradients",
        ),
        Collective(
            operation="all_gather",
            elements=sum(padded),
            element_bytes=element_bytes,
            calls=len(groups),
            purpose="weights",
        ),
    ]


def _sharded(
    groups: Sequence[Sequence[int]],
    zero: dict[str, Any],
    world_size: int,
    accumulation: int,
    element_bytes: int,
) -> list[Collective]:
    """Stage 3: weights are gathered where they are needed, the small ones once per step."""
    threshold = zero["stage3_param_persistence_threshold"]
    sizes = [size for group in groups for size in group]
    large = [_rounded_up(size, world_size) for size in sizes if size > threshold]
    small = [_rounded_up(size, world_size) for size in sizes if size <= threshold]
    # A weight stays from its first use to its last unless more than the distance is used in
    # between; the first layer's wait longest, for all others twice.
    distance = zero["stage3_max_reuse_distance"]
    if distance < 2 * sum(sizes):
        raise ConfigError(
            f"found zero_optimization.stage3_max_reuse_distance = {distance}; allowed: from "
            f"{2 * sum(sizes):,}, twice the parameters: below, DeepSpeed gathers weights again at "
            "every use, which is not modelled"
        )
    prefetched = max(zero["stage3_prefetch_bucket_size"], max(large, default=1))
    return [
        Collective(
            operation="reduce_scatter",
            elements=sum(_rounded_up(size, world_size) for size in sizes) * accumulation,
            element_bytes=element_bytes,
            calls=accumulation * -(-sum(sizes) // zero["reduce_bucket_size"]),
            purpose="gradients",
        ),
        Collective(
            operation="all_gather",
            elements=sum(large) * accumulation,
            element_bytes=element_bytes,
            calls=accumulation * -(-sum(large) // prefetched),
            purpose="weights, large",
        ),
        Collective(
            operation="all_gather",
            elements=sum(small),
            element_bytes=element_bytes,
            calls=len(small),
            purpose="weights, small",
        ),
    ]


def _decisions(stage: int, is_bf16: bool) -> list[Collective]:
    """Norms, and whether all is finite: single numbers, which only cost their latency."""
    if stage == 1 and is_bf16:
        return []  # every rank has the whole gradient
    norms = Collective(
        operation="all_reduce",
        elements=4,
        element_bytes=8 if stage == 3 else 4,
        calls=4,
        purpose="norms",
    )
    if stage != 2 or not is_bf16:
        return [norms]
    finite = Collective(
        operation="all_reduce", elements=1, element_bytes=1, calls=1, purpose="whether finite"
    )
    return [norms, finite]


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
