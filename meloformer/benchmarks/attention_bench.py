"""Forward and backward of sparse attention beside the fastest dense causal attention present.

Two levels: `attention` is SUMMARIZE and UPDATE of a layer without open summaries, from queries,
keys and values to their gradients; `model` is the whole model with its loss, without an optimizer,
and with open summaries in as many rows as in training, rounded up. The dense side has no summaries,
one causal UPDATE and no masks; pieces that share a row are not told apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.alternation import Candidate, Failure, Timing, release, time_in_turns
from meloformer.benchmarks.bench_models import build_model, num_graphs, open_rate
from meloformer.benchmarks.bench_rows import BenchRows
from meloformer.benchmarks.bench_tables import mebibytes, percent, plain, rounded, table_of
from meloformer.benchmarks.dense_kernels import Kernel, dense_kernels
from meloformer.model import attention
from meloformer.model.attention import AttentionPlan, Backend
from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import Order, Rule, num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.training.cards import peak_flops
from meloformer.training.config import Fuse, fuses
from meloformer.training.graphs import Shapes, limit_graphs
from meloformer.training.loss import step_loss
from meloformer.training.prepare import backend_of
from meloformer.training.work import pair_rate

Level = Literal["attention", "model"]

DENSE = "dense"
FORMULA = (
    "operations = 3 x [2 x weights x positions + 4 L D x unmasked pairs]: forward once, backward "
    "twice; a multiply-add is two; positions are tokens and summaries without padding; pairs are "
    "those of UPDATE (mean over heads, sampled) and of SUMMARIZE; open summaries and pairs with "
    "them count in the layers that have them; level attention is the second term with L = 1, "
    "without open summaries; the dense side has T (T + 1) / 2 pairs a row. MFU = operations / "
    "(seconds x peak of the data sheet); floor = operations / peak"
)
# Enough for a mean within about a percent, few enough for rows of 64k tokens.
_SAMPLED_QUERIES = 512


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all candidates of a bench share.

    Args:
        config: the model, its `rule` aside.
        rules: by name.
        device: where they compute.
        dtype: of weights and attention.
        rounds: timed calls of each candidate.
        block_size: of the block lists; the default of collation if not given.
        fuse: compile the pointwise parts of the models, the twin's too; as training does.
    """

    config: MuseFormerConfig
    rules: Mapping[str, Rule]
    device: torch.device
    dtype: torch.dtype
    rounds: int
    block_size: int | None = None
    fuse: Fuse = "auto"

    @property
    def backend(self) -> Backend:
        """The attention that has a backward on this device."""
        return backend_of(self.device)

    @property
    def is_fused(self) -> bool:
        """Whether pointwise parts are compiled; there is no engine that could take them apart."""
        return fuses(self.fuse, self.backend, zero_stage=0)

    def allow_graphs(self, lengths: Sequence[int], num_rows: int) -> None:
        """Let torch compile what some lengths will need and no more; call before `measure`.

        Args:
            lengths: T of each call of `measure`.
            num_rows: B.
        """
        shapes = Shapes(
            train=tuple(BatchShape(num_rows, T, num_summaries(T)) for T in lengths), score=()
        )
        configs = [replace(self.config, rule=rule) for rule in self.rules.values()]
        # Two levels, whose keys may lie differently in memory; attention alone has no other parts.
        allowed = sum(
            num_graphs(config, shapes, self.backend, fuse=fuse)
            for config in (*configs, self.twin)
            for fuse in (False, self.is_fused)
        )
        if allowed:
            limit_graphs(allowed)

    @property
    def twin(self) -> MuseFormerConfig:
        """The dense side's model."""
        return replace(self.config, rule="full", summaries=False)


def measure(bench: Bench, rows: BenchRows, level: Level) -> list[dict[str, Any]]:
    """One row of figures for each dense kernel and each rule, at one length.

    Args:
        bench: model, rules, device.
        rows: B rows of T tokens.
        level: what is timed.
    """
    calls = _attention_calls if level == "attention" else _model_calls
    candidates = calls(bench, rows)
    timings = time_in_turns(candidates, bench.device, bench.rounds)
    works = works_of(bench, rows, level)
    fastest = fastest_dense(timings)
    found = []
    for name, timing in timings.items():
        is_dense = _is_dense(name)
        row: dict[str, Any] = {
            "level": level,
            "tokens": rows.seq_len,
            "rows": len(rows.rows),
            "name": name,
            "kernel": "causal" if is_dense else bench.backend,
            "is_fastest_dense": name == fastest,
        }
        if isinstance(timing, Failure):
            found.append(row | {"why": timing.reason})
            continue
        work = works[DENSE if is_dense else name]
        row |= figures_of(timing, work, peak_flops(bench.device), rows.num_tokens)
        if fastest is not None:
            dense = timings[fastest]
            assert isinstance(dense, Timing)
            row["speedup"] = dense.median / timing.median
        found.append(row)
    release(bench.device)
    return found


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a candidate computes in one call.

    Args:
        flops: forward and backward, padding and masked pairs left out.
        density: unmasked pairs of UPDATE among those of the causal triangle of whole rows.
    """

    flops: float
    density: float


def works_of(bench: Bench, rows: BenchRows, level: Level) -> dict[str, Work]:
    """Work of each rule and of the dense side, by name."""
    layout = rows.batch(None, open_rate=open_rate(bench.config)).layout
    num_summaries = int((layout.piece_BS >= 0).sum())
    num_open = 0 if layout.open_BS is None else int((layout.open_BS >= 0).sum())
    triangle = len(rows.rows) * rows.seq_len * (rows.seq_len + 1) / 2
    # Dense attention does not know padding.
    pairs = {DENSE: StepPairs(update=triangle, summarize=0)}
    for name, rule in bench.rules.items():
        rate = pair_rate(layout, rule, _SAMPLED_QUERIES)
        pairs[name] = StepPairs(
            update=rate.update * rows.num_tokens,
            summarize=rate.summarize * num_summaries,
            opened=rate.opened * num_open,
        )
    works = {}
    for name, counted in pairs.items():
        config = bench.twin if name == DENSE else bench.config
        if level == "attention":
            config = replace(config, num_layers=1)
            flops = training_flops(config, 0, 0, counted)
        else:
            flops = training_flops(config, rows.num_tokens, num_summaries, counted, num_open)
        works[name] = Work(flops=flops, density=counted.update / triangle)
    return works


def figures_of(
    timing: Timing, work: Work, peak: float | None, num_tokens: int
) -> dict[str, float | int | None]:
    """What a table shows of a timing; None where device or peak say nothing."""
    floor = None if peak is None else work.flops / peak
    return {
        "ms": 1000 * timing.median,
        "spread": timing.spread,
        "tokens_per_second": num_tokens / timing.median,
        "flops": work.flops,
        "density": work.density,
        "mfu": None if floor is None else floor / timing.median,
        "floor_ms": None if floor is None else 1000 * floor,
        "memory": timing.memory,
        "graphs": timing.graphs,
        "first_seconds": timing.first_seconds,
    }


def fastest_dense(timings: Mapping[str, Timing | Failure]) -> str | None:
    """Name of the dense kernel with the smallest median; None where none ran."""
    medians = {
        name: timing.median
        for name, timing in timings.items()
        if _is_dense(name) and isinstance(timing, Timing)
    }
    return min(medians, key=medians.__getitem__, default=None)


_COLUMNS = {
    "name": ("", plain),
    "kernel": ("kernel", plain),
    "ms": ("ms", rounded(2)),
    "spread": ("spread", percent),
    "tokens_per_second": ("tokens/s", rounded(0)),
    "mfu": ("MFU", percent),
    "floor_ms": ("floor, ms", rounded(2)),
    "memory": ("MiB", mebibytes),
    "graphs": ("graphs", plain),
    "first_seconds": ("first, s", rounded(1)),
    "density": ("of causal", percent),
    "speedup": ("times dense", rounded(2)),
}


def attention_table(
    bench: Bench, size: str, rows: BenchRows, found: Sequence[Mapping[str, Any]]
) -> Table:
    """What `measure` found, with what was measured in the title.

    Args:
        bench: as given to `measure`.
        size: of the model, for people.
        rows: as given to `measure`.
        found: its result, not empty.
    """
    config = bench.config
    share = rows.num_tokens / (len(rows.rows) * rows.seq_len)
    masks = "" if bench.backend == "flex" else "; rules as dense masks, no sparse kernel"
    title = (
        f"{found[0]['level']}, {size} ({config.num_heads} heads of {config.head_width}), "
        f"{len(rows.rows)} x {rows.seq_len:,} tokens, {share:.0%} of them filled, "
        f"{str(bench.dtype).removeprefix('torch.')} on {bench.device.type}{masks}; {rows.source}"
    )
    return table_of(title, found, _COLUMNS)


def in_order(rule: Rule, order: Order | None) -> Rule:
    """The rule with all its tokens stored in one order; unchanged for None."""
    return rule if order is None else tuple(replace(group, order=order) for group in rule)


def claimed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures under the names by which claims ask for them.

    `attention_<rule>_<length>k` is the speed-up of the whole model; `attention_memory` the memory
    of attention alone at 32k as a multiple of that at 8k, of the rule where it grows most.
    """
    figures = {
        f"attention_{row['name']}_{row['tokens'] // 1024}k": row["speedup"]
        for row in rows
        if (row["level"], row["tokens"] % 1024) == ("model", 0)
        and row["kernel"] != "causal"
        and "speedup" in row
    }
    memory = {
        (row["name"], row["tokens"]): row["memory"]
        for row in rows
        if row["level"] == "attention" and row["kernel"] != "causal" and row.get("memory")
    }
    growth = [
        memory[name, 32768] / memory[name, 8192]
        for name in {name for name, _ in memory}
        if {(name, 8192), (name, 32768)} <= memory.keys()
    ]
    return figures | ({"attention_memory": max(growth)} if growth else {})


def _is_dense(name: str) -> bool:
    return name.startswith(f"{DENSE} ")


def _attention_calls(bench: Bench, rows: BenchRows) -> dict[str, Candidate]:
    config, batch = bench.config, rows.batch(None)
    (B, T), S = batch.ids_BT.shape, batch.layout.piece_BS.shape[1]
    H, G, K = config.num_heads, config.num_kv_heads, config.head_width
    torch.manual_seed(0)

    def drawn(heads: int, length: int) -> Tensor:
        # As projections leave them: the heads of a position lie together.
        shape = (B, length, heads, K)
        x_BNHK = torch.randn(shape, device=bench.device, dtype=bench.dtype)
        return x_BNHK.transpose(1, 2).requires_grad_()

    queries, keys, values = drawn(H, T), drawn(G, T), drawn(G, T)
    upstream = torch.randn_like(queries)
    candidates = {}
    for name, kernel in dense_kernels(bench.device).items():
        plan = attention.causal_plan()

        def dense(plan: AttentionPlan = plan) -> None:
            out = attention.update(queries, keys, values, plan)
            torch.autograd.grad(out, (queries, keys, values), upstream)

        candidates[f"{DENSE} {name}"] = Candidate(dense, kernel)

    summary_queries = drawn(H, S)
    summary_upstream = torch.randn_like(summary_queries)
    # Of the summaries that summaries read, and of those that tokens read.
    fine, coarse = (drawn(G, S), drawn(G, S)), (drawn(G, S), drawn(G, S))
    inputs = (queries, keys, values, summary_queries, *fine, *coarse)
    for name, rule in bench.rules.items():
        # Dense masks as numbers, as the model hands them to its layers.
        plan = _plan(bench, rows, rule).for_dtype(bench.dtype)

        def sparse(plan: AttentionPlan = plan) -> None:
            gathered = attention.summarize(summary_queries, keys, values, plan, fine)
            read = attention.update(queries, keys, values, plan, coarse)
            torch.autograd.grad((read, gathered), inputs, (upstream, summary_upstream))

        candidates[name] = Candidate(sparse)
    return candidates


def _model_calls(bench: Bench, rows: BenchRows) -> dict[str, Candidate]:
    batch = rows.batch(None, open_rate=open_rate(bench.config)).to(bench.device)
    model, twin = (
        build_model(config, fuse=bench.is_fused).to(bench.device, bench.dtype)
        for config in (bench.config, bench.twin)
    )

    def stepped(model: MuseFormer, plan: AttentionPlan) -> Callable[[], None]:
        # Those of the twin have no slots for summaries.
        has_summaries = model.config.summaries
        layout = batch.layout if has_summaries else batch.layout.without_summaries()
        start = NoisedOwn.of(batch.open_seeds) if has_summaries else None

        def step() -> None:
            logits_BTV = model(batch.ids_BT, layout, plan, start)
            step_loss(
                logits_BTV, batch.targets_BT, batch.num_targets, 1, fuse=bench.is_fused
            ).backward()
            model.zero_grad(set_to_none=True)

        return step

    kernel_name, kernel = fastest_kernel(bench, rows)
    causal = stepped(twin, attention.causal_plan())
    candidates = {f"{DENSE} {kernel_name}": Candidate(causal, kernel)}
    for name, rule in bench.rules.items():
        plan = _plan(bench, rows, rule, open_rate(bench.config))
        candidates[name] = Candidate(stepped(model, plan))
    return candidates


def fastest_kernel(bench: Bench, rows: BenchRows) -> tuple[str, Kernel]:
    """Name and context of the dense kernel that is fastest at these shapes, both ways."""
    kernels = dense_kernels(bench.device)
    calls = _attention_calls(replace(bench, rules={}), rows)
    timings = time_in_turns(calls, bench.device, bench.rounds)
    name = (fastest_dense(timings) or f"{DENSE} {next(iter(kernels))}").removeprefix(f"{DENSE} ")
    return name, kernels[name]


def _plan(bench: Bench, rows: BenchRows, rule: Rule, rate: float = 0.0) -> AttentionPlan:
    blocks_rule = rule if bench.backend == "flex" else None
    batch = rows.batch(blocks_rule, bench.block_size, open_rate=rate).to(bench.device)
    return attention.build_plan(batch.layout, rule, bench.backend, batch.blocks)
