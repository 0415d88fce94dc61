"""The parts of the GPU report: which commands measure what, and what is read from their files."""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from meloformer.training.metrics import METRICS_NAME
from meloformer.training.run_folder import RUN_NAME

Part = Literal["gradients", "precision", "attention", "train", "memory", "graphs"]

DEFAULT_RULE = "halves"
# Losses that are averaged at the beginning and at the end of a run.
_FEW_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the report's measurements are.

    Args:
        data: shard folder.
        device: "cuda"; "cpu" tries the machinery.
        lengths: rows of the attention bench.
        sizes: trained for `num_steps`, the first one for cold and warm start too.
        quick_sizes: trained for a tenth of them, for their speed.
        seq_len: rows of training.
        batch_size: rows of a step.
        num_steps: optimizer steps of a run.
        long_row: tokens of the row that has to train.
        rules: measured beside each other.
        num_workers: data processes.
        patience: the time limits of all children are multiplied by it.
    """

    data: str
    device: str = "cuda"
    lengths: tuple[int, ...] = (8192, 16384, 32768)
    sizes: tuple[str, ...] = ("large", "base")
    quick_sizes: tuple[str, ...] = ("small",)
    seq_len: int = 8192
    batch_size: int = 4
    num_steps: int = 200
    long_row: int = 65_536
    rules: tuple[str, ...] = (DEFAULT_RULE, "museformer")
    num_workers: int = 8
    patience: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Child:
    """One process of the report.

    Args:
        name: of its row, log and files.
        part: what asks for it.
        command: program and arguments, from the root of the repository.
        limit_seconds: after which it is stopped.
        read: figures from the folder of all files, also after it was stopped.
        environment: variables besides those of this process.
    """

    name: str
    part: Part
    command: tuple[str, ...]
    limit_seconds: float
    read: Callable[[Path], dict[str, Any]]
    environment: tuple[tuple[str, str], ...] = ()


def children_of(scale: Scale, folder: Path) -> list[Child]:
    """All processes of a report, those first whose figures matter most.

    Args:
        scale: how large.
        folder: for their files; compiled code stays in it, so that the first run finds none.
    """
    first, *others = scale.sizes
    children = [
        _check(scale, folder, "gradients", limit_seconds=75),
        _check(scale, folder, "precision", limit_seconds=45),
        _training(scale, folder, first, num_steps=scale.num_steps, limit_seconds=120),
        *(_attention(scale, folder, length) for length in scale.lengths),
        *(
            _training(scale, folder, size, num_steps=scale.num_steps, limit_seconds=90)
            for size in others
        ),
        _warm_start(scale, folder, first),
        _long_row(scale, folder, first),
        *(
            _training(
                scale, folder, size, num_steps=max(scale.num_steps // 10, 2), limit_seconds=60
            )
            for size in scale.quick_sizes
        ),
        _rules(scale, folder, first),
    ]
    return [
        replace(child, limit_seconds=scale.patience * child.limit_seconds) for child in children
    ]


def _check(scale: Scale, folder: Path, check: Part, *, limit_seconds: float) -> Child:
    module = "meloformer.benchmarks.gpu_checks"
    flags = f"--check {check} --device {scale.device} --json {folder / check}.json"
    return Child(
        name=check,
        part=check,
        command=(sys.executable, "-m", module, *flags.split()),
        limit_seconds=limit_seconds,
        read=lambda folder: _json_of(folder / f"{check}.json"),
        environment=_cache(folder),
    )


def _attention(scale: Scale, folder: Path, length: int) -> Child:
    name = f"attention-{length // 1024}k" if length >= 1024 else f"attention-{length}"
    flags = (
        f"--device {scale.device} --lengths {length} --rounds 5 --data {scale.data} "
        f"--json {folder / name}.json --rules"
    )
    return Child(
        name=name,
        part="attention",
        command=_recipe("bench/attention.py", *flags.split(), *scale.rules),
        limit_seconds=75,
        read=lambda folder: {"attention": _json_of(folder / f"{name}.json")["rows"]},
        environment=_cache(folder),
    )


def _training(
    scale: Scale, folder: Path, size: str, *, num_steps: int, limit_seconds: float
) -> Child:
    name = f"train-{size}"
    return Child(
        name=name,
        part="train",
        command=_train_command(scale, folder / name, size, num_steps, scale.seq_len),
        limit_seconds=limit_seconds,
        read=lambda folder: {"train": [run_figures(folder / name)]},
        environment=_cache(folder, "compiled"),
    )


def _warm_start(scale: Scale, folder: Path, size: str) -> Child:
    name = f"warm-{size}"

    def read(folder: Path) -> dict[str, Any]:
        again = run_figures(folder / name)
        return {"warm_s": again["warm_s"], "graphs": again["graphs"]}

    return Child(
        name=name,
        part="graphs",
        command=_train_command(scale, folder / name, size, 2, scale.seq_len),
        limit_seconds=60,
        read=read,
        environment=_cache(folder, "compiled"),
    )


def _long_row(scale: Scale, folder: Path, size: str) -> Child:
    name = "long-row"

    def read(folder: Path) -> dict[str, Any]:
        found = run_figures(folder / name)
        return {"longest_row": scale.long_row, "long_row": found}

    return Child(
        name=name,
        part="memory",
        command=_train_command(scale, folder / name, size, 2, scale.long_row, batch_size=1),
        limit_seconds=75,
        read=read,
        environment=_cache(folder, "compiled"),
    )


def _rules(scale: Scale, folder: Path, size: str) -> Child:
    name = "rules"
    flags = (
        f"--device {scale.device} --data {scale.data} --model_size {size} --max_seq_len "
        f"{scale.seq_len} --batch_size {scale.batch_size} --gradient_accumulation_steps 1 "
        f"--num_slices 3 --steps_per_slice 2 --steady_steps 5 --num_workers {scale.num_workers} "
        f"--attention {scale.rules[0]} --json {folder / name}.json --against"
    )
    return Child(
        name=name,
        part="train",
        command=_recipe("bench/train.py", *flags.split(), *scale.rules[1:], "full"),
        limit_seconds=100,
        read=lambda folder: {"steps": _json_of(folder / f"{name}.json")["rows"]},
        environment=_cache(folder),
    )


def _train_command(
    scale: Scale, output: Path, size: str, num_steps: int, seq_len: int, batch_size: int = 0
) -> tuple[str, ...]:
    # Rows packed full: one shape, so that the report compiles in its minutes what a run needs.
    flags = (
        f"--device {scale.device} --data {scale.data} --output {output} --model_size {size} "
        f"--max_seq_len {seq_len} --batch_size {batch_size or scale.batch_size} "
        f"--gradient_accumulation_steps 1 --collate pack --phases off --max_steps {num_steps} "
        f"--num_workers {scale.num_workers} --validation_rows {batch_size or scale.batch_size} "
        f"--warmup_steps {min(_FEW_STEPS, num_steps - 1)} --save_every 0 --validate_every 0 "
        f"--attention {DEFAULT_RULE}"
    )
    return _recipe("train.py", *flags.split())


def _recipe(path: str, *flags: str) -> tuple[str, ...]:
    return (sys.executable, f"launch/{path}", *flags)


def _cache(folder: Path, name: str = "compiled-by-others") -> tuple[tuple[str, str], ...]:
    # What was compiled on this machine before, or by another part, must not make a start warm.
    code = folder / name
    return (
        ("TORCHINDUCTOR_CACHE_DIR", str(code)),
        ("TRITON_CACHE_DIR", str(code / "triton")),
        ("PYTHONUNBUFFERED", "1"),
    )


def _json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def run_figures(run: Path) -> dict[str, Any]:
    """What a run says about itself, also one that was stopped.

    Args:
        run: run folder.

    Returns:
        Medians over the second half of its steps, mean losses at both ends, times of the first
        step, peak bytes; None for what the device does not say.

    Raises:
        FileNotFoundError: it did not get as far as its first step.
        ValueError: likewise.
    """
    written = json.loads((run / RUN_NAME).read_text())
    # A stopped run may leave half a line.
    lines = [line for line in (run / METRICS_NAME).read_text().split("\n")[:-1] if line]
    steps = [json.loads(line) for line in lines]
    if not steps:
        raise ValueError("no step was done")
    settled = steps[len(steps) // 2 :]

    def median(name: str) -> float | None:
        values = [step[name] for step in settled if step[name] is not None]
        return statistics.median(values) if values else None

    def mean(name: str) -> float | None:
        values = [step[name] for step in settled if step[name] is not None]
        return statistics.mean(values) if values else None

    few = min(_FEW_STEPS, len(steps) // 2)
    losses = [step["loss"] for step in steps if step["loss"] is not None]
    settings, start = written["settings"], written["starts"][-1]
    return {
        "model_size": settings["model_size"],
        "rule": settings["attention"],
        "max_seq_len": settings["max_seq_len"],
        "batch_size": settings["batch_size"],
        "steps": len(steps),
        "tokens_per_second": median("tokens_per_second"),
        "mfu": median("mfu"),
        "data_wait": mean("data_wait"),
        "busy": mean("gpu_utilisation"),
        "graphs": steps[-1]["graphs"],
        "peak_measured": steps[-1]["memory"],
        "first_loss": statistics.mean(losses[:few]) if few else None,
        "last_loss": statistics.mean(losses[-few:]) if few else None,
        "first_step_s": start.get("first_step_s"),
        "cold_s": start.get("cold_s"),
        "warm_s": start.get("warm_s"),
    }
