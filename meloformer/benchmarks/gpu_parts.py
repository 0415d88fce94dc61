"""The parts of the GPU report: which commands measure what, and what is read from their files."""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from meloformer.benchmarks.gpu_phases import is_told, phases_of
from meloformer.model.config import Checkpointing
from meloformer.training.metrics import METRICS_NAME
from meloformer.training.run_folder import RUN_NAME

Part = Literal[
    "gradients", "precision", "attention", "train", "memory", "graphs", "phases", "choices"
]
# Training tries the precision anyway, the choices take more minutes than all others together, and
# for the phases there is no time left beside the others.
DEFAULT_PARTS: tuple[Part, ...] = ("gradients", "attention", "train", "memory", "graphs")

DEFAULT_RULE = "halves"
# Losses that are averaged at the beginning and at the end of a run.
_FEW_STEPS = 20
# Last steps of the phases, where they are measured.
_PHASE_ENDS = (4, 8, 12)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the report's measurements are.

    Args:
        data: shard folder.
        device: "cuda"; "cpu" tries the machinery.
        lengths: rows of the attention bench.
        sizes: trained for `num_steps`, the first one for cold and warm start too.
        busy_size: one of them, trained to the last of `busy_steps`.
        busy_steps: between which the GPU's busy share is taken.
        quick_sizes: trained for a tenth of `num_steps`, for their speed.
        memory_size: whose memory is measured, with attention in each precision and by phase.
        seq_len: rows of training.
        batch_size: rows of a step.
        num_steps: optimizer steps of a run.
        long_row: tokens of the row that has to train.
        long_row_checkpointing: with which it fits the device.
        rules: measured beside each other.
        num_workers: data processes.
        patience: the seconds that are modelled for all children are multiplied by it.
    """

    data: str
    device: str = "cuda"
    lengths: tuple[int, ...] = (8192, 16384, 32768)
    sizes: tuple[str, ...] = ("large", "base")
    busy_size: str = "base"
    busy_steps: tuple[int, int] = (200, 400)
    quick_sizes: tuple[str, ...] = ("small",)
    memory_size: str = "base"
    seq_len: int = 8192
    batch_size: int = 4
    num_steps: int = 200
    long_row: int = 65_536
    long_row_checkpointing: Checkpointing = "none"
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
        seconds: that it should take on a card like the H100, compiling included; modelled, and
            what it is sure to get.
        read: figures from the folder of all files, also after it was stopped.
        is_done: whether all its figures are in that folder: it is ended then.
        environment: variables besides those of this process.
    """

    name: str
    part: Part
    command: tuple[str, ...]
    seconds: float
    read: Callable[[Path], dict[str, Any]]
    is_done: Callable[[Path], bool] | None = None
    environment: tuple[tuple[str, str], ...] = ()


def children_of(scale: Scale, folder: Path) -> list[Child]:
    """All processes of a report, those first whose figures matter most.

    Args:
        scale: how large.
        folder: for their files; compiled code stays in it, so that the first run finds none.
    """
    first, *others = scale.sizes
    quick_steps = max(scale.num_steps // 10, 2)
    children = [
        _check(scale, folder, "gradients", seconds=50),
        _training(scale, folder, first, num_steps=scale.num_steps, seconds=85),
        *(_attention(scale, folder, length) for length in scale.lengths),
        *(_training(scale, folder, size, num_steps=scale.num_steps, seconds=65) for size in others),
        _warm_start(scale, folder, first, seconds=22),
        _long_row(scale, folder, first, seconds=38),
        *(
            _training(scale, folder, size, num_steps=quick_steps, seconds=28)
            for size in scale.quick_sizes
        ),
        _rules(scale, folder, first, seconds=38),
        _precision_memory(scale, folder, seconds=34),
        _check(scale, folder, "precision", seconds=30),
        _phases(scale, folder, "on", seconds=50),
        _phases(scale, folder, "off", seconds=35),
        _choices(scale, folder, first, seconds=420),
    ]
    return [replace(child, seconds=scale.patience * child.seconds) for child in children]


def _check(scale: Scale, folder: Path, check: Part, *, seconds: float) -> Child:
    flags = f"--check {check} --device {scale.device} --json {folder / check}.json"
    return Child(
        name=check,
        part=check,
        command=_module("gpu_checks", *flags.split()),
        seconds=seconds,
        read=lambda folder: _json_of(folder / f"{check}.json"),
        environment=_cache(folder),
    )


def _attention(scale: Scale, folder: Path, length: int) -> Child:
    name = f"attention-{length // 1024}k" if length >= 1024 else f"attention-{length}"
    # How memory grows is known from the shortest row and the longest one.
    is_end = length in (min(scale.lengths), max(scale.lengths))
    flags = (
        f"--device {scale.device} --lengths {length} --rounds 5 --data {scale.data} "
        f"--json {folder / name}.json --levels {'attention ' if is_end else ''}model --rules"
    )
    return Child(
        name=name,
        part="attention",
        command=_recipe("bench/attention.py", *flags.split(), *scale.rules),
        seconds=42 if is_end else 28,
        read=lambda folder: {"attention": _json_of(folder / f"{name}.json")["rows"]},
        environment=_cache(folder),
    )


def _training(scale: Scale, folder: Path, size: str, *, num_steps: int, seconds: float) -> Child:
    name = f"train-{size}"
    is_busy_run = size == scale.busy_size
    last_step = max(num_steps, scale.busy_steps[1]) if is_busy_run else num_steps

    def read(folder: Path) -> dict[str, Any]:
        found = run_figures(
            folder / name,
            loss_steps=num_steps,
            busy_steps=scale.busy_steps if is_busy_run else None,
        )
        return {"train": [found], "precision": found.pop("precision")}

    return Child(
        name=name,
        part="train",
        command=_train_command(scale, folder / name, size, last_step, scale.seq_len),
        seconds=seconds,
        read=read,
        is_done=lambda folder: _has_steps(folder / name, last_step),
        environment=_cache(folder, "compiled"),
    )


def _warm_start(scale: Scale, folder: Path, size: str, *, seconds: float) -> Child:
    name = f"warm-{size}"

    def read(folder: Path) -> dict[str, Any]:
        again = run_figures(folder / name)
        return {"warm_s": again["warm_s"], "graphs": again["graphs"]}

    return Child(
        name=name,
        part="graphs",
        command=_train_command(scale, folder / name, size, 2, scale.seq_len),
        seconds=seconds,
        read=read,
        is_done=lambda folder: _has_steps(folder / name, 2),
        environment=_cache(folder, "compiled"),
    )


def _long_row(scale: Scale, folder: Path, size: str, *, seconds: float) -> Child:
    name = "long-row"

    def read(folder: Path) -> dict[str, Any]:
        found = run_figures(folder / name)
        del found["precision"]
        return {"longest_row": scale.long_row, "long_row": found}

    return Child(
        name=name,
        part="memory",
        command=(
            *_train_command(scale, folder / name, size, 2, scale.long_row, batch_size=1),
            *("--checkpointing", scale.long_row_checkpointing),
        ),
        seconds=seconds,
        read=read,
        is_done=lambda folder: _has_steps(folder / name, 2),
        environment=_cache(folder, "compiled"),
    )


def _rules(scale: Scale, folder: Path, size: str, *, seconds: float) -> Child:
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
        command=_recipe("bench/train.py", *flags.split(), *scale.rules[1:]),
        seconds=seconds,
        read=lambda folder: {"steps": _json_of(folder / f"{name}.json")["rows"]},
        environment=_cache(folder, "compiled"),
    )


def _precision_memory(scale: Scale, folder: Path, *, seconds: float) -> Child:
    name = "precision-memory"
    flags = (
        f"--device {scale.device} --model_size {scale.memory_size} --max_seq_len {scale.seq_len} "
        f"--batch_size {scale.batch_size} --attention {DEFAULT_RULE} --json {folder / name}.json"
    )
    return Child(
        name=name,
        part="memory",
        command=_module("precision_memory", *flags.split()),
        seconds=seconds,
        read=lambda folder: _json_of(folder / f"{name}.json"),
        environment=_cache(folder, "compiled"),
    )


def _phases(scale: Scale, folder: Path, phases: Literal["on", "off"], *, seconds: float) -> Child:
    name, (first, second, last) = f"phases-{phases}", _PHASE_ENDS
    # Of a flag that is given twice the last one counts.
    flags = f"--phases {phases} --phase_1_until {first} --phase_2_until {second}"
    return Child(
        name=name,
        part="phases",
        command=(
            *_train_command(scale, folder / name, scale.memory_size, last, scale.seq_len),
            *flags.split(),
        ),
        seconds=seconds,
        read=lambda folder: {"phases": phases_of(folder / name, phases)},
        is_done=lambda folder: is_told(folder / name, last),
        environment=_cache(folder, "compiled"),
    )


def _choices(scale: Scale, folder: Path, size: str, *, seconds: float) -> Child:
    flags = (
        f"--device {scale.device} --data {scale.data} --model_size {size} --max_seq_len "
        f"{scale.seq_len} --attention {DEFAULT_RULE} --json {folder / 'choices'}.json"
    )
    return Child(
        name="choices",
        part="choices",
        command=_module("choices", *flags.split()),
        seconds=seconds,
        read=lambda folder: _json_of(folder / "choices.json"),
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
        f"--samples 0 --attention {DEFAULT_RULE}"
    )
    return _recipe("train.py", *flags.split())


def _recipe(path: str, *flags: str) -> tuple[str, ...]:
    return (sys.executable, f"launch/{path}", *flags)


def _module(name: str, *flags: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"meloformer.benchmarks.{name}", *flags)


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


def _steps_of(run: Path) -> list[dict[str, Any]]:
    # A stopped run may leave half a line.
    lines = [line for line in (run / METRICS_NAME).read_text().split("\n")[:-1] if line]
    return [json.loads(line) for line in lines]


def _has_steps(run: Path, num_steps: int) -> bool:
    """Whether a run has done all its steps; what it saves then is of no use to a report."""
    return (run / METRICS_NAME).exists() and len(_steps_of(run)) >= num_steps


def run_figures(
    run: Path, *, loss_steps: int | None = None, busy_steps: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What a run says about itself, also one that was stopped.

    Args:
        run: run folder.
        loss_steps: steps over which the loss should fall; all that were done if not given.
        busy_steps: the share of time in which the GPU computes is that after the first of these
            steps and up to the last; the second half of the run if not given.

    Returns:
        Medians over the second half of its steps, mean losses at both ends of `loss_steps`, times
        of the first step, peak bytes; None for what the device does not say, and for losses and
        busy share of steps that were not done.

    Raises:
        FileNotFoundError: it did not get as far as its first step.
        ValueError: likewise.
    """
    written = json.loads((run / RUN_NAME).read_text())
    steps = _steps_of(run)
    if not steps:
        raise ValueError("no step was done")
    settled = steps[len(steps) // 2 :]
    busy = settled if busy_steps is None else steps[slice(*busy_steps)]
    is_busy_known = busy_steps is None or len(steps) >= busy_steps[1]
    judged = steps[:loss_steps]
    few = min(_FEW_STEPS, len(judged) // 2) if len(judged) == (loss_steps or len(judged)) else 0
    # A step whose loss is no number says null.
    first, last = (
        [step["loss"] for step in part if step["loss"] is not None]
        for part in (judged[:few], judged[len(judged) - few :])
    )
    settings, start = written["settings"], written["starts"][-1]
    precision = start.get("attention_precision")
    return {
        "model_size": settings["model_size"],
        "rule": settings["attention"],
        "max_seq_len": settings["max_seq_len"],
        "batch_size": settings["batch_size"],
        "checkpointing": settings["checkpointing"],
        "attention_dtype": precision and precision["dtype"],
        "steps": len(steps),
        "tokens_per_second": _of(statistics.median, settled, "tokens_per_second"),
        "mfu": _of(statistics.median, settled, "mfu"),
        "data_wait": _of(statistics.mean, settled, "data_wait"),
        "busy": _of(statistics.mean, busy, "gpu_utilisation") if is_busy_known else None,
        "busy_steps": busy_steps,
        "graphs": steps[-1]["graphs"],
        "peak_measured": steps[-1]["memory"],
        "loss_steps": len(judged),
        "first_loss": statistics.mean(first) if first and last else None,
        "last_loss": statistics.mean(last) if first and last else None,
        "first_step_s": start.get("first_step_s"),
        "cold_s": start.get("cold_s"),
        "warm_s": start.get("warm_s"),
        "precision": precision,
    }


def _of(
    mean: Callable[[list[float]], float], steps: Sequence[Mapping[str, Any]], name: str
) -> float | None:
    values = [step[name] for step in steps if step[name] is not None]
    return mean(values) if values else None
