"""What every run writes about itself, whatever it trains: lines of figures, TensorBoard, a log."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from meloformer.progress import duration
from meloformer.training.board import Board
from meloformer.training.doing import DoingWriter
from meloformer.training.line_file import LineFile
from meloformer.training.metrics import (
    LOG_NAME,
    METRICS_NAME,
    TENSORBOARD_NAME,
    VALIDATION_NAME,
)

# Where nobody watches a bar: words on a validation that takes longer than this, so often.
_SECONDS_PER_LINE = 10.0

logger = logging.getLogger("meloformer")


class RunWriter:
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
            self._task = self._progress.add_task(
                "train", total=num_steps, completed=start_step, words=""
            )

    def show_bar(self) -> None:
        """From now on, a bar of the steps on a terminal; once is enough."""
        if self.is_first and self._progress:
            self._progress.start()

    def say(self, text: str) -> None:
        """One line for train.log and the terminal."""
        if self.is_first:
            logger.info(text)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, values: Mapping[str, float | int | None], step: int) -> None:
        """Figures for TensorBoard; those that are None are left out."""

        def add(board: SummaryWriter) -> None:
            for name, value in values.items():
                if value is not None:
                    board.add_scalar(name, value, step)

        self._draw(add)

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

    def _say_step(self, step: int, brief: str, line: str | None, details: str = "") -> None:
        """Tell of a step: beside the bar, and now and then as a line.

        Args:
            step: optimizer steps done.
            brief: beside the bar.
            line: for the log, and for a terminal without a bar; None where none is due.
            details: of the line, for the log alone.
        """
        if self._progress:
            self._progress.update(self._task, completed=step, words=brief)
        if line is not None:
            logger.info(f"{line}, {details}" if details else line)
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

    def close(self) -> None:
        """Flush and close everything."""
        if not self.is_first:
            return
        if self._doing:
            self._doing.close()
        if self._progress and self._progress.live.is_started:
            self._progress.stop()
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
