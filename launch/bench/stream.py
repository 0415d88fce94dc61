"""What the data stream costs: tokens per second and core, padding, memory and time of a plan.

    python launch/bench/stream.py --data data_shards/<name>
    python launch/bench/stream.py --data data_shards/<name> --seq_len 1024 --rule museformer
    python launch/bench/stream.py --simulate 1000000            # a plan over a split of that size
    python launch/bench/stream.py --simulate 100000000 --json plan.json

Seconds are CPU seconds of one process, so that other work on the machine does not count; the time
to the first batch is given by the clock too.
"""

import json
import multiprocessing
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from meloformer.batches.collate import Collator
from meloformer.batches.facts import epoch_facts
from meloformer.batches.phases import PhaseConfig
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import (
    Cursor,
    PlanConfig,
    iterate_steps,
    plan_fingerprint,
    plan_group,
    shard_groups,
)
from meloformer.batches.share import micro_batches, step_facts
from meloformer.batches.simulated import SimulatedSplit
from meloformer.batches.stream import TrainStream
from meloformer.batches.windows import Windows
from meloformer.benchmarks.peak_memory import peak_bytes
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.masks import rule_of
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import PAD

# A plan that is simulated beside the one asked for: what does not grow shows as equal.
SMALL = 10_000
# Groups of shards planned at the beginning, in the middle and at the end of a large epoch.
_GROUPS_PLANNED = 8
_BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BenchStreamConfig:
    """Flags of launch/bench/stream.py."""

    data: tuple[str, ...] = ()
    """Shard folders; each is measured."""
    simulate: int = 0
    """Pieces of a simulated split whose plan is measured; 0 simulates none."""
    collate: tuple[str, ...] = ("bucket", "pack")
    """Collate modes to measure."""
    seq_len: int = 8192
    """Tokens of the longest row."""
    rule: str = "halves"
    """Attention rule of the block plans."""
    batch_size: int = 6
    """Rows of a micro-batch."""
    global_batch: int = 48
    """Rows of an optimizer step."""
    num_batches: int = 12
    """Micro-batches that are made to measure speed."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        if not self.data and not self.simulate:
            raise ConfigError("found neither --data nor --simulate; allowed: one of them, or both")
        for name in ("batch_size", "global_batch", "num_batches", "seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 1 or more")

    def plan(self, collate: str) -> PlanConfig:
        """The plan of a collate mode."""
        return PlanConfig(
            max_seq_len=self.seq_len,
            collate=collate,  # type: ignore[arg-type]
            global_batch=self.global_batch,
        )


def bench_stream(config: BenchStreamConfig) -> None:
    console = Console()
    figures: dict[str, Any] = {}
    if config.data:
        figures["stream"] = [
            {"data": Path(data).name} | stream_figures(data, collate, config)
            for data in config.data
            for collate in config.collate
        ]
        console.print(as_table("stream, one core", figures["stream"]))
    if config.simulate:
        figures["plan"] = [
            plan_figures(num_pieces, collate, config)
            for collate in config.collate
            for num_pieces in (min(SMALL, config.simulate), config.simulate)
        ]
        console.print(as_table("plan of a simulated split", figures["plan"]))
    if config.json:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


def stream_figures(data: str, collate: str, config: BenchStreamConfig) -> dict[str, Any]:
    """Speed with and without block plans, and padding, of one folder."""
    index = ShardFolder.open(data).split("train")
    plan = config.plan(collate)
    facts = epoch_facts(index, plan)
    steps = list(iterate_steps(index, plan))
    computed = [step_facts(step, 1, config.batch_size) for step in steps[:-1]]
    padded = sum(step.padded_tokens for step in computed)
    return {
        "mode": collate,
        "pieces": index.num_pieces,
        "steps": facts.num_steps,
        "tokens per second": tokens_per_second(index, plan, None, config),
        f"with {config.rule} plans": tokens_per_second(index, plan, config.rule, config),
        # An epoch of one step has nothing but a last step.
        "padding of rows, %": round(100 * facts.padding, 2) if computed else None,
        "padding as computed, %": round(
            100 * (1 - sum(step.num_tokens for step in computed) / padded), 2
        )
        if computed
        else None,
    }


def tokens_per_second(
    index: PieceIndex, plan: PlanConfig, rule: str | None, config: BenchStreamConfig
) -> int:
    """Tokens that a core turns into batches in a CPU second."""
    torch.set_num_threads(1)
    collator = Collator(index=index, blocks_rule=rule_of(rule) if rule else None)
    specs = (
        spec
        for step in iterate_steps(index, plan)
        for spec in micro_batches(step, 0, 1, config.batch_size)
    )
    chosen = list(islice(specs, config.num_batches))
    collator(chosen[0])  # maps the shards
    start, num_tokens = time.process_time(), 0
    for spec in chosen:
        num_tokens += int((collator(spec).ids_BT != PAD).sum())
    return round(num_tokens / (time.process_time() - start))


def plan_figures(num_pieces: int, collate: str, config: BenchStreamConfig) -> dict[str, Any]:
    """What a plan costs, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_plan, (num_pieces, collate, config))


def measure_plan(num_pieces: int, collate: str, config: BenchStreamConfig) -> dict[str, Any]:
    """Plan a simulated split and resume in the middle of its epoch."""
    torch.set_num_threads(1)
    index, plan = SimulatedSplit(num_pieces), config.plan(collate)
    before = peak_bytes()
    num_planned, seconds = plan_in_places(index, plan)
    clock, cpu = first_batch_seconds(index, plan, config)
    return {
        "pieces": num_pieces,
        "mode": collate,
        "planned": num_planned,
        "pieces/s": round(num_planned / seconds),
        "peak, MiB": round(peak_bytes() / _BYTES_PER_MIB),
        "of it the plan": round((peak_bytes() - before) / _BYTES_PER_MIB),
        "first batch, s": round(clock, 2),
        "first batch, CPU s": round(cpu, 2),
    }


def plan_in_places(index: SimulatedSplit, plan: PlanConfig) -> tuple[int, float]:
    """Plan an epoch, of a large one its beginning, middle and end; pieces and CPU seconds."""
    groups = shard_groups(index, plan, 0)
    chosen = set(range(len(groups)))
    if len(groups) > 3 * _GROUPS_PLANNED:
        starts = (0, len(groups) // 2, len(groups) - _GROUPS_PLANNED)
        chosen = {start + number for start in starts for number in range(_GROUPS_PLANNED)}
    num_planned, carried, start = 0, Windows.of(()), time.process_time()
    for group in sorted(chosen):
        planned = plan_group(index, plan, 0, groups, group, carried)
        num_planned, carried = num_planned + planned.num_pieces, planned.left
    return num_planned, time.process_time() - start


def first_batch_seconds(
    index: SimulatedSplit, plan: PlanConfig, config: BenchStreamConfig
) -> tuple[float, float]:
    """Seconds from a checkpoint in the middle of an epoch to a rank's first batch: clock and CPU.

    The rows of a step are shared out over as many ranks as leave one micro-batch to each.
    """
    groups = shard_groups(index, plan, 0)
    group = len(groups) // 2
    carried = Windows.of(())
    if group:
        carried = plan_group(index, plan, 0, groups, group - 1, carried).left
    cursor = Cursor(group=group, step_in_group=5, step_in_epoch=5, carried=tuple(carried))
    state = {"plan": plan_fingerprint(index, plan), "cursor": cursor.to_json()}
    fresh = SimulatedSplit(index.num_pieces)  # nothing of its shards is known yet
    phases = PhaseConfig(phases="off", micro_batch_rows=config.batch_size, num_workers=0)
    collator = Collator(index=fresh, blocks_rule=rule_of(config.rule))
    clock, cpu = time.perf_counter(), time.process_time()
    world_size = -(-config.global_batch // config.batch_size)
    next(TrainStream(collator, plan, phases, world_size=world_size, state=state, step=5))
    return time.perf_counter() - clock, time.process_time() - cpu


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Figures for people."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("data", "mode") else "right")
    for row in rows:
        texts = (
            "-" if v is None else f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()
        )
        table.add_row(*texts)
    return table


if __name__ == "__main__":
    run_recipe(bench_stream, BenchStreamConfig)
