"""What a run says about a step: a line of metrics.jsonl, and the same in words."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from meloformer.progress import duration

METRICS_NAME, LOG_NAME, TENSORBOARD_NAME = "metrics.jsonl", "train.log", "tensorboard"
VALIDATION_NAME = "validation.jsonl"
STEPS_PER_LINE = 10
BYTES_PER_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step over all ranks; a line of metrics.jsonl.

    Args:
        step: optimizer step, from 1.
        epoch: of the data, from 0.
        phase: of the start-up, None without phases.
        loss: nats per target before the step's update; None where it is not finite.
        nats_per_note: nats of the targets inside bars, over the number of notes.
        loss_by_kind: nats per target of a kind, for kinds that occur.
        tokens: targets of the step.
        lr: learning rate of the step.
        grad_norm: before clipping; None where it is not finite.
        step_seconds: wall clock, data wait included.
        tokens_per_second: targets per second of wall clock, data wait included.
        mfu: share of the devices' peak; None where the peak or the work is unknown.
        padding: share of positions without a token.
        data_wait: share of the step that ranks waited for data.
        rank_seconds_min: the least that a rank spent on its own in the step before, waiting for
            data and in forward passes; see `step.Clock`. None in the first step of a start, and
            where there is one rank; so are the next three.
        rank_seconds_median: over ranks.
        rank_seconds_max: the most.
        slowest_rank: which rank that was.
        graphs: compiled attention graphs so far; None where nothing is compiled.
        memory: peak bytes on the first rank's device; None on a CPU.
        memory_host: bytes of the first rank's process.
        gpu_utilisation: share of the time in which the first rank's device computed, mean over
            the step; None on a CPU.
        skipped: steps dropped so far.
        failed_saves: checkpoints that could not be written in this start.
        rollbacks: how often the run has gone back to a checkpoint so far.
        eta_seconds: at the recent pace, to the end of the run.
        dropped: why this step was dropped, and its batches (see `Verdict.describe`); None for a
            step that was taken.
        rolled_back: in the first step after a rollback: from which step, to which, and the dropped
            ones of the steps that no longer count; None in all others.
    """

    step: int
    epoch: int
    phase: int | None
    loss: float | None
    nats_per_note: float | None
    loss_by_kind: dict[str, float | None]
    tokens: int
    lr: float
    grad_norm: float | None
    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    padding: float
    data_wait: float
    rank_seconds_min: float | None
    rank_seconds_median: float | None
    rank_seconds_max: float | None
    slowest_rank: int | None
    graphs: int | None
    memory: int | None
    memory_host: int
    gpu_utilisation: float | None
    skipped: int
    failed_saves: int
    rollbacks: int = 0
    eta_seconds: float
    dropped: dict[str, Any] | None = None
    rolled_back: dict[str, Any] | None = None

    def line(self, num_steps: int) -> str:
        """The step in words, for the terminal."""
        loss = "not finite" if self.loss is None else f"{self.loss:.4f}"
        norm = "not finite" if self.grad_norm is None else f"{self.grad_norm:.3f}"
        words = [
            f"step {self.step}/{num_steps}",
            f"epoch {self.epoch}",
            f"loss {loss}",
            f"lr {self.lr:.2e}",
            f"grad norm {norm}",
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"padding {self.padding:.1%}",
            f"data wait {self.data_wait:.1%}",
        ]
        if self.mfu is not None:
            words.append(f"MFU {self.mfu:.1%}")
        if self.memory is not None:
            words.append(f"memory {self.memory / BYTES_PER_GIB:.1f} GiB")
        if self.skipped:
            words.append(f"skipped {self.skipped}")
        if self.failed_saves:
            words.append(f"failed saves {self.failed_saves}")
        if self.rollbacks:
            words.append(f"rolled back {self.rollbacks}")
        words.append(f"eta {duration(self.eta_seconds)}")
        return ", ".join(words)

    def details(self) -> str:
        """What `line` leaves out, for the log."""
        words = [f"step time {self.step_seconds:.3g} s"]
        if self.slowest_rank is not None:
            words.append(
                f"ranks {self.rank_seconds_min:.3g} / {self.rank_seconds_median:.3g} / "
                f"{self.rank_seconds_max:.3g} s, slowest {self.slowest_rank}"
            )
        words.append(f"host memory {self.memory_host / BYTES_PER_GIB:.1f} GiB")
        if self.gpu_utilisation is not None:
            words.append(f"GPU {self.gpu_utilisation:.0%}")
        if self.graphs is not None:
            words.append(f"graphs {self.graphs}")
        if self.nats_per_note is not None:
            words.append(f"nats per note {self.nats_per_note:.3f}")
        kinds = [f"{k} {v:.3f}" for k, v in self.loss_by_kind.items() if v is not None]
        return ", ".join([*words, f"loss by kind: {' '.join(kinds)}"])


def device_memory(device: torch.device) -> int | None:
    """Peak bytes allocated on a device so far; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def host_memory() -> int:
    """Bytes that this process holds."""
    import psutil  # of an extra, and whoever reads a run from outside has no need of it

    return psutil.Process().memory_info().rss


def gpu_utilisation(device: torch.device) -> float | None:
    """Share of the last second in which the device computed; None where nobody can say."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (RuntimeError, pynvml.NVMLError):  # a share of a device has no figure of its own
        return None


def finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def gibibytes(size: float) -> str:
    """Bytes for people.

    >>> gibibytes(3 << 29)
    '1.50 GiB'
    """
    return f"{size / BYTES_PER_GIB:.2f} GiB"
