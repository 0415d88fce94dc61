"""What a run says about itself: metrics.jsonl, TensorBoard, train.log and the terminal."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from meloformer.training.validation import Nats

METRICS_NAME, LOG_NAME, TENSORBOARD_NAME = "metrics.jsonl", "train.log", "tensorboard"
VALIDATION_NAME = "validation.jsonl"
STEPS_PER_LINE = 10
# Where nobody watches a bar: words on a validation that takes longer than this, so often.
_SECONDS_PER_LINE = 10.0
BYTES_PER_GIB = 1 << 30

logger = logging.getLogger("meloformer")


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step over all ranks; a line of metrics.jsonl.

    Args:
        step: optimizer step, from 1.
        epoch: of the data, from 0.
        phase: of the start-up, None without phases.
        loss: nats per target before the step's update.
        tokens: targets of the step.
        lr: learning rate of the step.
        grad_norm: before clipping; None where it is not finite.
        tokens_per_second: targets per second of wall clock, data wait included.
        mfu: share of the devices' peak; None where the peak or the work is unknown.
        padding: share of positions without a token.
        data_wait: share of the step that ranks waited for data.
        graphs: compiled attention graphs so far; None where nothing is compiled.
        memory: peak bytes on the first rank's device; None on a CPU.
        memory_host: bytes of the first rank's process.
        gpu_utilisation: 0 to 1; None on a CPU.
        skipped: steps dropped so far.
        eta_seconds: at the recent pace, to the end of the run.
    """

    step: int
    epoch: int
    phase: int | None
    loss: float | None
    tokens: int
    lr: float
    grad_norm: float | None
    tokens_per_second: float
    mfu: float | None
    padding: float
    data_wait: float
    graphs: int | None
    memory: int | None
    memory_host: int
    gpu_utilisation: float | None
    skipped: int
    eta_seconds: float

    def line(self, num_steps: int) -> str:
        """The step in words, for people."""
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
        words.append(f"eta {duration(self.eta_seconds)}")
        return ", ".join(words)


class Metrics:
    """Writes the first rank's account of a run; on other ranks every call does nothing.

    Args:
        folder: the run folder.
        start_step: steps done before this start; what later steps left behind is dropped.
        num_steps: optimizer steps of the whole run.
        is_first: whether this rank writes.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int, is_first: bool) -> None:
        self.num_steps = num_steps
        self.is_first = is_first
        if not is_first:
            return
        for name in (METRICS_NAME, VALIDATION_NAME):
            drop_lines_after(folder / name, start_step)
        self._lines = (folder / METRICS_NAME).open("a", buffering=1)
        self._validation_lines = (folder / VALIDATION_NAME).open("a", buffering=1)
        self._writer = SummaryWriter(str(folder / TENSORBOARD_NAME), purge_step=start_step + 1)
        self._handler = _log_to(folder / LOG_NAME)
        self._console = Console(file=sys.stdout)
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "train", total=num_steps, completed=start_step, words=""
            )

    def say(self, text: str) -> None:
        """One line for train.log and the terminal."""
        if self.is_first:
            logger.info(text)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, metrics: StepMetrics) -> None:
        """Write down a step; a line of words every few steps and at the end."""
        if not self.is_first:
            return
        values = asdict(metrics)
        self._lines.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if value is not None and name != "step":
                self._writer.add_scalar(f"train/{name}", value, metrics.step)
        if self._progress:
            loss = "not finite" if metrics.loss is None else f"{metrics.loss:.3f}"
            words = f"loss {loss}, {metrics.tokens_per_second:,.0f} tokens/s"
            self._progress.update(self._task, completed=metrics.step, words=words)
        if metrics.step % STEPS_PER_LINE == 0 or metrics.step == self.num_steps:
            line = metrics.line(self.num_steps)
            logger.info(line)
            if not self._progress:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def watch_validation(self, step: int, num_batches: int) -> Iterator[Callable[[], None]]:
        """Show how far a validation is and when it ends.

        Args:
            step: optimizer steps done.
            num_batches: of this rank.

        Yields:
            What to call after each batch.
        """
        if not self.is_first:
            yield lambda: None
            return
        if self._progress:
            bar, task = (
                self._progress,
                self._progress.add_task("validate", total=num_batches, words=""),
            )
            try:
                yield lambda: bar.advance(task)
            finally:
                bar.remove_task(task)
            return
        num_done, began = 0, time.monotonic()
        said = began

        def advance() -> None:
            nonlocal num_done, said
            num_done, now = num_done + 1, time.monotonic()
            if num_done < num_batches and now - said >= _SECONDS_PER_LINE:
                said = now
                eta = (now - began) / num_done * (num_batches - num_done)
                self.say(
                    f"validation after step {step}: batch {num_done}/{num_batches}, "
                    f"eta {duration(eta)}"
                )

        yield advance

    def validation(self, step: int, scores: dict[str, Nats]) -> None:
        """Write down the likelihoods of a validation.

        Args:
            step: optimizer steps done.
            scores: by which attributes of a piece the model was told, "all" and "none".
        """
        if not self.is_first:
            return
        line: dict[str, Any] = {"step": step}
        for told, nats in scores.items():
            line[told] = asdict(nats)
            self._writer.add_scalar(f"valid/{told}/nats_per_token", nats.per_token, step)
            self._writer.add_scalar(f"valid/{told}/nats_per_note", nats.per_note, step)
            for kind, value in nats.per_kind.items():
                self._writer.add_scalar(f"valid/{told}/kind/{kind}", value, step)
        self._validation_lines.write(json.dumps(line) + "\n")
        words = [
            f"{nats.per_token:.4f} nats per token and {nats.per_note:.3f} per note with "
            f"{'no' if told == 'none' else told} attributes"
            for told, nats in scores.items()
        ]
        self.say(f"validation after step {step}: {'; '.join(words)}")

    def close(self) -> None:
        """Flush and close everything."""
        if not self.is_first:
            return
        if self._progress:
            self._progress.stop()
        self._writer.close()
        self._lines.close()
        self._validation_lines.close()
        logger.removeHandler(self._handler)
        self._handler.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Forget the lines of steps that a resumed run will do again; a cut last line goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            # A killed process leaves half a line, and nothing after it.
            break
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    temporary.replace(path)


def device_memory(device: torch.device) -> int | None:
    """Peak bytes allocated on a device so far; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def host_memory() -> int:
    """Bytes that this process holds."""
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


def num_graphs(device: torch.device) -> int | None:
    """Graphs that torch has compiled so far; None where attention is not compiled."""
    if device.type != "cuda":
        return None
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(59), duration(3661)
    ('0:00:59', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _log_to(path: Path) -> logging.Handler:
    stream: TextIO = path.open("a", buffering=1)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
