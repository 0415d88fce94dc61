"""The full training step of several candidates in turns: same model, stream and optimizer.

The step is the loop's own: wait for data, forward, loss and backward of each micro-batch, gradient
norm, update. All candidates read the same rows in the same order.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.windows import check_bars_fit
from meloformer.benchmarks.alternation import (
    REFUSALS,
    in_turn,
    reason_of,
    release,
)
from meloformer.benchmarks.attention_bench import Bench, fastest_kernel
from meloformer.benchmarks.bench_models import engine_settings
from meloformer.benchmarks.bench_rows import BenchRows
from meloformer.benchmarks.bench_tables import mebibytes, percent, plain, rounded, table_of
from meloformer.benchmarks.stepper import Stepper, StepSettings, Trainee
from meloformer.benchmarks.workload import Workload
from meloformer.model.config import Checkpointing, MuseFormerConfig
from meloformer.model.masks import BLOCK_SIZE
from meloformer.model.precision import choose_precision
from meloformer.model.rules import load_rule
from meloformer.training.config import Fuse, fuses
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.graphs import limit_graphs
from meloformer.training.metrics import gpu_utilisation
from meloformer.training.prepare import backend_of
from meloformer.training.ranks import Ranks


def measure_steps(
    settings: StepSettings,
    trainees: Sequence[Trainee],
    *,
    num_slices: int,
    steps_per_slice: int,
    steady_steps: int,
) -> list[dict[str, Any]]:
    """Figures of each candidate; the first one is the one that all is about.

    Args:
        settings: what they share.
        trainees: the candidates.
        num_slices: turns of each; every second round runs backwards.
        steps_per_slice: optimizer steps of a turn.
        steady_steps: of the first candidate alone at the end, without a break in which its data
            workers could get ahead: these tell the wait for data and the busy share.
    """
    with ExitStack() as at_end:  # the data workers of whatever has come into motion
        return _measured(settings, trainees, at_end, num_slices, steps_per_slice, steady_steps)


def _measured(
    settings: StepSettings,
    trainees: Sequence[Trainee],
    at_end: ExitStack,
    num_slices: int,
    steps_per_slice: int,
    steady_steps: int,
) -> list[dict[str, Any]]:
    device = settings.ranks.device
    steppers: dict[str, Stepper] = {}
    reasons: dict[str, str] = {}
    for trainee in trainees:
        try:
            steppers[trainee.name] = at_end.enter_context(closing(Stepper(settings, trainee)))
        except REFUSALS as error:
            reasons[trainee.name] = reason_of(error)
        if trainee.name in reasons:
            release(device)
    for number in range(num_slices):
        for stepper in in_turn(list(steppers.values()), number):
            for _ in range(steps_per_slice):
                stepper.step()
    found = {name: stepper.figures() for name, stepper in steppers.items()}
    first = trainees[0].name
    for name, stepper in steppers.items():
        if name != first:
            stepper.close()
    if first in steppers:
        found[first] |= _steady(steppers[first], steady_steps)
    twin = next((t.name for t in trainees if t.is_twin and t.name in found), None)
    for row in found.values():
        if twin is not None:
            row["speedup"] = row["tokens_per_second"] / found[twin]["tokens_per_second"]
    return [found.get(t.name) or {"name": t.name, "why": reasons[t.name]} for t in trainees]


def _steady(stepper: Stepper, num_steps: int) -> dict[str, Any]:
    """Wait and busy share of steps in a row, the first ones left out: workers are ahead there."""
    settings = stepper.settings
    per_worker = 2  # batches that a worker of torch's DataLoader keeps ready
    ahead = -(-per_worker * settings.num_workers // settings.accumulation)
    busy = []
    for _ in range(ahead):
        stepper.step()
    start = len(stepper.seconds)
    for _ in range(num_steps):
        stepper.step()
        busy.append(gpu_utilisation(settings.ranks.device))
    told = [share for share in busy if share is not None]
    return {
        "data_wait": sum(stepper.waits[start:]) / sum(stepper.seconds[start:]),
        "busy": statistics.mean(told) if told else None,
    }


def claimed(rows: Sequence[dict[str, Any]], workload: Workload) -> dict[str, float]:
    """Figures of the first candidate under the names by which claims ask for them.

    Args:
        rows: as `measure_steps` returns them.
        workload: what `epochs_hours` are the hours of.
    """
    row = rows[0]
    if "why" in row:
        return {}
    beyond = sum(max(0, row["graphs"] - row["graphs_declared"]) for row in rows if "graphs" in row)
    figures = {
        "train_tokens": row["tokens_per_second"],
        "train_wait": 100 * row["data_wait"],
        "graphs_beyond": beyond,
        "epochs_hours": workload.hours(row["tokens_per_second"]),
    }
    return figures | ({} if row["mfu"] is None else {"train_mfu": 100 * row["mfu"]})


_COLUMNS = {
    "name": ("", plain),
    "kernel": ("kernel", plain),
    "step_s": ("s a step", rounded(3)),
    "spread": ("spread", percent),
    "tokens_per_second": ("tokens/s", rounded(0)),
    "mfu": ("MFU", percent),
    "floor_s": ("floor, s", rounded(3)),
    "memory": ("peak, MiB", mebibytes),
    "data_wait": ("wait", percent),
    "busy": ("busy", percent),
    "graphs": ("graphs", plain),
    "graphs_declared": ("declared", plain),
    "first_seconds": ("first, s", rounded(1)),
    "speedup": ("times twin", rounded(2)),
}


def steps_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """What `measure_steps` found."""
    return table_of(title, rows, _COLUMNS)


def settle(
    index: PieceIndex,
    ranks: Ranks,
    *,
    max_seq_len: int,
    batch_size: int,
    accumulation: int,
    num_workers: int,
    config: Path = DEFAULT_DS_CONFIG,
    checkpointing: Checkpointing = "none",
    fuse: Fuse = "auto",
    block_size: int = BLOCK_SIZE,
) -> StepSettings:
    """Settings as a run would have them.

    Args:
        index: training pieces.
        ranks: this process.
        max_seq_len: tokens of a row.
        batch_size: rows of a micro-step.
        accumulation: micro-steps of a step.
        num_workers: data processes of each candidate.
        config: ds_configs file.
        checkpointing: what the backward pass computes again.
        fuse: compile pointwise parts.
        block_size: of the block lists.

    Raises:
        BatchError: a bar is longer than a row.
        ConfigError: the file's partitioning is refused, or attention is wrong in every precision.
    """
    check_bars_fit(index, max_seq_len)
    ds_config = engine_settings(
        ranks.device.type,
        batch_size=batch_size,
        accumulation=accumulation,
        world_size=ranks.world_size,
        source=config,
    )
    return StepSettings(
        index=index,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        accumulation=accumulation,
        num_workers=num_workers,
        ds_config=ds_config,
        ranks=ranks,
        checkpointing=checkpointing,
        precision=choose_precision("auto", ranks.device).dtype,
        block_size=block_size,
        fuse=fuses(fuse, backend_of(ranks.device), ds_config["zero_optimization"]["stage"]),
    )


def trainees_of(
    settings: StepSettings, model: MuseFormerConfig, rules: Sequence[str], kernel_rows: BenchRows
) -> list[Trainee]:
    """The model under each rule, then its dense twin under the fastest kernel; torch may compile
    for these and for no other.

    Args:
        settings: what they share.
        model: its rule aside.
        rules: presets, or .json files of head groups.
        kernel_rows: rows at which the dense kernels are compared.
    """
    ranks = settings.ranks
    bench = Bench(
        config=model,
        rules={},
        device=ranks.device,
        dtype=torch.bfloat16 if settings.ds_config["bf16"]["enabled"] else torch.float32,
        rounds=5,
    )
    kernel_name, kernel = fastest_kernel(bench, kernel_rows)
    sparse = [Trainee(name=name, config=replace(model, rule=load_rule(name))) for name in rules]
    twin = Trainee(name=f"dense twin ({kernel_name})", config=bench.twin, kernel=kernel)
    trainees = [*sparse, twin]
    if (allowed := sum(trainee.num_graphs(settings) for trainee in trainees)) > 0:
        limit_graphs(allowed)
    return trainees
