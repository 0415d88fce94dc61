"""Where a run writes what it says about itself: metrics.jsonl, TensorBoard, train.log, terminal."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib.image import imread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from meloformer.midi.sound import SAMPLE_RATE
from meloformer.training.board import Board
from meloformer.training.doing import DoingWriter
from meloformer.training.ema import AVERAGED_SCORES
from meloformer.training.line_file import LineFile
from meloformer.training.metrics import (
    LOG_NAME,
    METRICS_NAME,
    STEPS_PER_LINE,
    TENSORBOARD_NAME,
    VALIDATION_NAME,
    StepMetrics,
    duration,
)
from meloformer.training.nats import Nats
from meloformer.training.wandb_run import WandbRun

# Where nobody watches a bar: words on a validation that takes longer than this, so often.
_SECONDS_PER_LINE = 10.0

logger = logging.getLogger("meloformer")


class MetricsWriter:
    """Writes the first rank's account of a run; on other ranks every call does nothing.

    A disk that is full ends no run: lines wait until there is room, TensorBoard misses some steps.

    Args:
        folder: the run folder.
        start_step: steps done before this start; what later steps left behind is dropped.
        num_steps: optimizer steps of the whole run.
        is_first: whether this rank writes.
        moment: says what the run does; kept in doing.json if given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        num_steps: int,
        is_first: bool,
        moment: Callable[[], str] | None = None,
    ) -> None:
        self.num_steps = num_steps
        self.is_first = is_first
        if not is_first:
            return
        self._folder = folder
        self._is_refused = False
        self._lines = LineFile(folder / METRICS_NAME)
        self._validation_lines = LineFile(folder / VALIDATION_NAME)
        for lines in (self._lines, self._validation_lines):
            lines.keep_while(partial(_is_of, range(start_step + 1)))
        self._board = Board(folder / TENSORBOARD_NAME, start_step)
        self._handler = _log_to(folder / LOG_NAME)
        self._doing = DoingWriter(folder, moment) if moment else None
        self._wandb: WandbRun | None = None
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

    def follow(self, wandb_run: WandbRun) -> None:
        """From now on, show the figures there too; on the first rank."""
        self._wandb = wandb_run

    def _show(self, values: Mapping[str, float | int | None], step: int) -> None:
        known = {name: value for name, value in values.items() if value is not None}

        def add(board: SummaryWriter) -> None:
            for name, value in known.items():
                board.add_scalar(name, value, step)

        self._draw(add)
        if self._wandb:
            self._wandb.log(dict(values), step)

    def _write(self, lines: LineFile, values: Mapping[str, Any]) -> None:
        with self._told():
            lines.add(json.dumps(values))

    def _draw(self, draw: Callable[[SummaryWriter], None]) -> None:
        with self._told():
            self._board.draw(draw)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Held around writing: says once that the disk refuses it, once that it takes it again."""
        try:
            yield
        except OSError as error:
            if not self._is_refused:
                self.say(
                    f"error: {self._folder}: figures are not written ({error.strerror}); the run "
                    f"goes on; {METRICS_NAME} follows when there is room, TensorBoard misses some "
                    "steps; make room on the disk of --output"
                )
            self._is_refused = True
        else:
            files = (self._lines, self._validation_lines)
            is_whole = not any(lines.num_waiting for lines in files) and self._board.is_open
            if self._is_refused and is_whole:
                self._is_refused = False
                self.say(f"{self._folder}: figures are written again")

    def step(self, metrics: StepMetrics) -> None:
        """Write down a step; a line of words every few steps and at the end."""
        if not self.is_first:
            return
        values = asdict(metrics)
        self._write(self._lines, values)
        for event in ("dropped", "rolled_back"):
            if found := values.pop(event):
                self._draw(partial(_add_text, f"train/{event}", json.dumps(found), metrics.step))
        for kind, value in values.pop("loss_by_kind").items():
            values[f"kind/{kind}"] = value
        del values["step"]
        self._show({f"train/{name}": value for name, value in values.items()}, metrics.step)
        if self._progress:
            loss = "not finite" if metrics.loss is None else f"{metrics.loss:.3f}"
            words = f"loss {loss}, {metrics.tokens_per_second:,.0f} tokens/s"
            self._progress.update(self._task, completed=metrics.step, words=words)
        if metrics.step % STEPS_PER_LINE == 0 or metrics.step == self.num_steps:
            line = metrics.line(self.num_steps)
            logger.info(f"{line}, {metrics.details()}")
            if not self._progress:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget the steps after this one, which the run will do again with other data.

        Returns:
            The lines of metrics.jsonl that went.
        """
        if not self.is_first:
            return []
        gone: list[str] = []
        is_kept = partial(_is_of, range(step + 1))
        with self._told():
            gone = self._lines.keep_while(is_kept)
            self._validation_lines.keep_while(is_kept)
        self._board.rewind(step)
        if self._progress:
            self._progress.update(self._task, completed=step)
        return [json.loads(line) for line in gone]

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
            scores: by which attributes of a piece the model was told, "all" and "none"; those of
                averaged weights under the same names, begun with `AVERAGED_SCORES`.
        """
        if not self.is_first:
            return
        line: dict[str, Any] = {"step": step}
        for told, nats in scores.items():
            line[told] = asdict(nats)
            kinds = {f"valid/{told}/kind/{kind}": value for kind, value in nats.per_kind.items()}
            means = {"nats_per_token": nats.per_token, "nats_per_note": nats.per_note}
            self._show(kinds | {f"valid/{told}/{k}": value for k, value in means.items()}, step)
        self._write(self._validation_lines, line)
        words = [
            f"{nats.per_token:.4f} nats per token and {nats.per_note:.3f} per note {_told(told)}"
            for told, nats in scores.items()
        ]
        self.say(f"validation after step {step}: {'; '.join(words)}")

    def piece(self, step: int, name: str, picture: Path, sound: np.ndarray) -> None:
        """Show a generated piece in TensorBoard.

        Args:
            step: optimizer steps done.
            name: of the piece; those of other steps go by the same names.
            picture: a PNG.
            sound: (num_samples,) float32, -1..1, at `midi.sound.SAMPLE_RATE`.
        """
        if not self.is_first:
            return
        image = imread(picture)

        def add(board: SummaryWriter) -> None:
            board.add_image(f"samples/{name}", image, step, dataformats="HWC")
            board.add_audio(f"samples/{name}", sound[None], step, sample_rate=SAMPLE_RATE)

        self._draw(add)

    def close(self) -> None:
        """Flush and close everything."""
        if not self.is_first:
            return
        if self._doing:
            self._doing.close()
        if self._progress:
            self._progress.stop()
        if self._wandb:
            self._wandb.close()
        num_lost = self._lines.close() + self._validation_lines.close()
        if not self._board.close() or num_lost:
            self.say(
                f"error: {self._folder}: the disk has no room for the last figures: lost are "
                f"{num_lost} lines of {METRICS_NAME} and {VALIDATION_NAME}, and some of TensorBoard"
            )
        logger.removeHandler(self._handler)
        self._handler.close()


def _is_of(steps: range, line: str) -> bool:
    """Whether a line tells of one of these steps; what a power cut left of one tells of none."""
    try:
        return json.loads(line)["step"] in steps
    except ValueError:
        return False


def _told(name: str) -> str:
    told = name.removeprefix(AVERAGED_SCORES)
    averaged = "" if told == name else ", averaged weights"
    return f"with {'no' if told == 'none' else told} attributes{averaged}"


def _add_text(name: str, text: str, step: int, board: SummaryWriter) -> None:
    board.add_text(name, text, step)


class _LogHandler(logging.StreamHandler):
    """Says nothing of a disk that refuses a line: the terminal has it, and the next one tries."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _log_to(path: Path) -> logging.Handler:
    stream: TextIO = path.open("a", buffering=1)
    handler = _LogHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
