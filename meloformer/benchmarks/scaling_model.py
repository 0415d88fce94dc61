"""Many GPUs before they are at hand: time of a step's traffic, and what is left of their speed.

The volume is that of training/traffic.py, counted by its tests. The time is NCCL's own cost model,
cut down to what it needs of a machine: a latency per call that grows with the ranks, and bytes
over the bandwidth of the slowest link that a ring crosses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from meloformer.benchmarks.bench_rows import BenchRows
from meloformer.benchmarks.bench_tables import mebibytes, percent, plain, rounded, table_of
from meloformer.command_line import check_above_zero, check_at_least
from meloformer.model.config import MuseFormerConfig
from meloformer.training.cards import Card
from meloformer.training.outlook import EXPECTED_MFU
from meloformer.training.traffic import Collective, parameter_sizes, step_traffic
from meloformer.training.work import layout_flops


@dataclass(frozen=True)
class _Protocol:
    """One of NCCL's ways to run a collective.

    Args:
        base_us: of any call.
        node_us: of a hop inside a node, over NVLink.
        network_us: of a hop between nodes.
        share: of the link's bandwidth.
    """

    base_us: float
    node_us: float
    network_us: float
    share: float


# src/graph/tuning.cc of NCCL: baseLat, hwLat and the corrections of the bandwidth.
_RING_SIMPLE = _Protocol(8.4, 3.4, 14.0, 1.0)
_RING_LL = _Protocol(6.6, 0.6, 2.7, 0.5)
_TREE_LL = _Protocol(6.8, 0.6, 5.0, 1 / 3.8)


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """What connects the GPUs; the defaults are those of HGX H100 and H200 with NDR InfiniBand.

    Args:
        gpus_per_node: GPUs that share a node.
        node_gb_s: 10^9 bytes per second that a GPU sends inside its node in a ring. H100, H200 and
            H20: 370 of the 450 that NVLink carries (nccl-tests issue 212); H800: about 165 of 200;
            A100: about 230 of 300.
        network_gb_s: 10^9 bytes per second that a node sends, all its adapters together; eight of
            400 Gbit/s carry 400, a fifth of which is taken for their protocol.
    """

    gpus_per_node: int = 8
    node_gb_s: float = 370.0
    network_gb_s: float = 320.0

    def __post_init__(self) -> None:
        check_at_least(self, {"gpus_per_node": 1})
        check_above_zero(self, "node_gb_s", "network_gb_s")


def collective_seconds(part: Collective, world_size: int, links: LinkConfig) -> float:
    """Time of all calls of a part, each in the quickest of NCCL's ways.

    Args:
        part: what is exchanged.
        world_size: number of ranks, in full nodes but for the last one.
        links: between them.

    Source: NCCL, src/graph/tuning.cc, ring and tree; without NVLink SHARP, which would make an
    all-reduce inside a node about a third faster.
    """
    if world_size == 1 or not part.calls:
        return 0.0
    num_nodes = -(-world_size // links.gpus_per_node)
    # A ring leaves each node once, whatever the number of its GPUs.
    gb_s = links.node_gb_s if num_nodes == 1 else min(links.node_gb_s, links.network_gb_s)
    rounds = 2 if part.operation == "all_reduce" else 1
    network_hops = rounds * (num_nodes - 1)
    node_hops = rounds * (world_size - 1) - network_hops
    megabytes = part.bytes_sent(world_size) / part.calls / 1e6

    def ring(way: _Protocol) -> float:
        latency = way.base_us + node_hops * way.node_us + network_hops * way.network_us
        return latency + 1e3 * megabytes / (gb_s * way.share)

    ways = [ring(_RING_SIMPLE), ring(_RING_LL)]
    if part.operation == "all_reduce":
        in_node = min(world_size, links.gpus_per_node) - 1
        hops = in_node * _TREE_LL.node_us + math.log2(num_nodes) * _TREE_LL.network_us
        payload = 2 * part.payload / part.calls / 1e6
        ways.append(_TREE_LL.base_us + 2 * hops + 1e3 * payload / (gb_s * _TREE_LL.share))
    return part.calls * min(ways) * 1e-6


def modelled_tokens_per_second(
    config: MuseFormerConfig, rows: BenchRows, card: Card, mfu: float = EXPECTED_MFU
) -> float:
    """Tokens that one GPU trains on in a second at some share of its peak.

    Args:
        config: the model.
        rows: whose labels say how many pairs the rule allows.
        card: whose peak.
        mfu: share of the peak, attention and summaries counted.
    """
    flops = layout_flops(config, rows.batch(None).layout)
    return mfu * card.peak_flops * rows.num_tokens / flops


@dataclass(frozen=True, kw_only=True)
class RankWork:
    """What a rank does in a step.

    Args:
        size: of the model, for tables.
        config: the model.
        tokens: of a micro-step of one rank.
        accumulation: micro-steps of a step.
        tokens_per_second: of one GPU that waits for nobody.
    """

    size: str
    config: MuseFormerConfig
    tokens: int
    accumulation: int
    tokens_per_second: float


def predict(
    work: RankWork, ds_config: dict[str, Any], world_size: int, links: LinkConfig
) -> dict[str, Any]:
    """Volume and time of a step's traffic in bf16, and its share of the step.

    Nothing is overlapped, as our engine runs (`overlap_comm` off); `hidden_share` is what would be
    left if all of it could run beside the computation.

    Args:
        work: of each rank; more ranks are a larger step.
        ds_config: content of a ds_configs file.
        world_size: number of ranks.
        links: between them.

    Returns:
        A row, marked as modelled.
    """
    parts = step_traffic(
        parameter_sizes(work.config),
        ds_config,
        world_size=world_size,
        accumulation=work.accumulation,
        is_bf16=True,
    )
    compute = work.tokens * work.accumulation / work.tokens_per_second
    exchange = sum(collective_seconds(part, world_size, links) for part in parts)
    return {
        "kind": "modelled",
        "size": work.size,
        "stage": ds_config["zero_optimization"]["stage"],
        "ranks": world_size,
        "sent_bytes": sum(part.bytes_sent(world_size) for part in parts),
        "calls": sum(part.calls for part in parts),
        "exchange_seconds": exchange,
        "compute_seconds": compute,
        "exchange_share": exchange / (compute + exchange),
        "hidden_share": max(0.0, 1 - compute / exchange) if exchange else 0.0,
        "efficiency": compute / (compute + exchange),
        "tokens_per_second": work.tokens * work.accumulation * world_size / (compute + exchange),
    }


def predicted_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Predictions for people."""
    return table_of(
        "Several GPUs, modelled: a step of one rank",
        rows,
        {
            "size": ("model", plain),
            "stage": ("ZeRO", plain),
            "ranks": ("GPUs", plain),
            "sent_bytes": ("sent, MiB", mebibytes),
            "calls": ("calls", plain),
            "exchange_seconds": ("exchange, s", rounded(3)),
            "compute_seconds": ("compute, s", rounded(2)),
            "exchange_share": ("exchange of step", percent),
            "hidden_share": ("if hidden", percent),
            "efficiency": ("efficiency", percent),
            "tokens_per_second": ("tokens/s", rounded(0)),
        },
    )
