"""What a bridge's training says of itself: metrics.jsonl, validation.jsonl, train.log, terminal."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from meloformer.training.line_file import LineFile
from meloformer.training.metrics import LOG_NAME, METRICS_NAME, VALIDATION_NAME, duration

_STEPS_PER_LINE = 10

logger = logging.getLogger("meloformer.bridge_training")


class Journal:
    """The first rank's account of a run; on other ranks every call does nothing.

    Args:
        folder: the run folder.
        start_step: steps done before this start; lines of later ones are dropped.
        num_steps: of the whole run.
        is_first: whether this rank writes.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int, is_first: bool) -> None:
        self._num_steps, self._is_first = num_steps, is_first
        if not is_first:
            return
        self._console = Console()
        self._lines = LineFile(folder / METRICS_NAME)
        self._validation_lines = LineFile(folder / VALIDATION_NAME)
        for lines in (self._lines, self._validation_lines):
            lines.keep_while(lambda line: json.loads(line)["step"] <= start_step)
        self._handler = logging.FileHandler(folder / LOG_NAME)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """One line for train.log and the terminal."""
        if self._is_first:
            logger.info(text)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, values: Mapping[str, Any]) -> None:
        """Write down a step; words every few steps and at the end.

        Args:
            values: with step, loss, learning_rate, grad_norm, rows_per_second and eta_seconds.
        """
        if not self._is_first:
            return
        self._lines.add(json.dumps(dict(values)))
        step = values["step"]
        if step % _STEPS_PER_LINE == 0 or step == self._num_steps:
            loss = "not finite" if values["loss"] is None else f"{values['loss']:.4f}"
            self.say(
                f"step {step}/{self._num_steps}, loss {loss}, "
                f"{values['rows_per_second']:.1f} rows/s, eta {duration(values['eta_seconds'])}"
            )

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write down the means of a validation."""
        if not self._is_first:
            return
        self._validation_lines.add(json.dumps({"step": step, **scores}))
        words = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"validation after step {step}: {words}")

    def close(self) -> None:
        """Close the files."""
        if self._is_first:
            self._lines.close()
            self._validation_lines.close()
            logger.removeHandler(self._handler)
            self._handler.close()
