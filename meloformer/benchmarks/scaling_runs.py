"""Several ranks as they are: the training recipe on 1, 2, ... of them, and its own account."""

import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from meloformer.benchmarks.bench_tables import percent, plain, rounded, table_of
from meloformer.benchmarks.child_runs import run_child
from meloformer.errors import ConfigError
from meloformer.training.metrics import METRICS_NAME

_TIMEOUT_SECONDS = 1800
_EXCEPTION = re.compile(r"(?:\[rank\d+\]: )?[\w.]+(?:Error|Exception)\b")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is started.

    Args:
        recipe: launch/train.py.
        data: shard folder.
        size: of the model.
        max_seq_len: tokens of a row; rows are packed full, so that all steps are alike.
        batch_size: rows per rank and micro-step.
        accumulation: micro-steps of a step.
        config: ds_configs file.
        device: "cuda" or "cpu".
        num_steps: of which the second half is measured.
    """

    recipe: Path
    data: str
    size: str
    max_seq_len: int
    batch_size: int
    accumulation: int
    config: Path
    device: str
    num_steps: int


def rank_counts(num_devices: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all.

    >>> rank_counts(1), rank_counts(6), rank_counts(8)
    ((1,), (1, 2, 4, 6), (1, 2, 4, 8))
    """
    doubled = [1 << power for power in range(num_devices.bit_length())]
    return tuple(sorted({*(count for count in doubled if count <= num_devices), num_devices}))


def measure_ranks(
    settings: RunSettings, counts: Sequence[int], limit_seconds: float = _TIMEOUT_SECONDS
) -> list[dict[str, Any]]:
    """Train on each number of ranks; a row for each, with the reason where one failed.

    Args:
        settings: what is started; each rank has the same work, so that more are a larger step.
        counts: numbers of ranks, from the lowest. Efficiency is against the first that ran.
        limit_seconds: after which a run is stopped.
    """
    rows: list[dict[str, Any]] = []
    for count in counts:
        row: dict[str, Any] = {
            "kind": "measured",
            "size": settings.size,
            "stage": json.loads(settings.config.read_text())["zero_optimization"]["stage"],
            "ranks": count,
        }
        with tempfile.TemporaryDirectory() as scratch:
            row |= _measure(settings, count, Path(scratch) / "run", limit_seconds)
        first = next((known for known in [*rows, row] if "tokens_per_second" in known), None)
        if first and "tokens_per_second" in row:
            per_rank = row["tokens_per_second"] / count
            row["efficiency"] = per_rank / (first["tokens_per_second"] / first["ranks"])
        rows.append(row)
    return rows


def _measure(
    settings: RunSettings, count: int, output: Path, limit_seconds: float
) -> dict[str, Any]:
    flags = {
        "data": settings.data,
        "config": settings.config,
        "model_size": settings.size,
        "max_seq_len": settings.max_seq_len,
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "max_steps": settings.num_steps,
        "device": settings.device,
        "output": output,
        "collate": "pack",
        "num_workers": 2 if settings.device == "cuda" else 0,
        "save_every": 0,
        "validate_every": 0,
        "validation_rows": 1,
        "samples": 0,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(count), str(settings.recipe)]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment: dict[str, str] = {}
    if settings.device == "cpu":
        # Ranks that each took all cores would wait for one another.
        threads = max((os.cpu_count() or 1) // count, 1)
        environment = {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    # All of them end with it: ranks that outlive their launcher would hold the GPUs of the next.
    log = output.with_suffix(".log")
    ended = run_child(
        command, limit_seconds=limit_seconds, log=log, cwd=Path.cwd(), environment=environment
    )
    if ended.reason:
        is_stopped = ended.reason.startswith("stopped")
        said = ended.reason if is_stopped else reason_of_run(log.read_text(errors="replace"))
        return {"why": said}
    lines = [json.loads(line) for line in (output / METRICS_NAME).read_text().splitlines()]
    steady = lines[len(lines) // 2 :]
    return {
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steady),
        "data_wait": statistics.median(line["data_wait"] for line in steady),
        "steps": len(steady),
    }


def reason_of_run(said: str) -> str:
    """What a run said of itself, or else its last exception."""
    lines = [line.strip() for line in said.splitlines()]
    refused = [line for line in lines if line.startswith("error: ")]
    # The launcher adds an exception of its own, which says nothing of the run.
    raised = [line for line in lines if _EXCEPTION.match(line) and "ChildFailed" not in line]
    return (refused or raised[-1:] or lines[-1:] or ["no word"])[0]


def check_counts(counts: Sequence[int], num_devices: int, device: str) -> None:
    """Refuse numbers of ranks that cannot be started here.

    Raises:
        ConfigError: below 1, or more than there are GPUs.
    """
    for count in counts:
        if count < 1 or (device == "cuda" and count > num_devices):
            raise ConfigError(
                f"--ranks {count}: allowed: 1 or more"
                + (f", up to the {num_devices} GPU(s) of this host" if device == "cuda" else "")
            )


def measured_table(settings: RunSettings, rows: Sequence[dict[str, Any]]) -> Table:
    """Measurements for people."""
    return table_of(
        f"Several ranks, measured: {settings.size} on {settings.device}, {settings.batch_size} "
        f"rows of {settings.max_seq_len} tokens x {settings.accumulation} micro-steps a rank",
        rows,
        {
            "stage": ("ZeRO", plain),
            "ranks": ("ranks", plain),
            "tokens_per_second": ("tokens/s", rounded(0)),
            "efficiency": ("efficiency", percent),
            "data_wait": ("data wait", percent),
            "steps": ("steps", plain),
        },
    )
