"""What a bridge's training says of itself, in the files and the words of every run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meloformer.progress import duration
from meloformer.training.metrics import STEPS_PER_LINE
from meloformer.training.run_writer import RunWriter


class Journal(RunWriter):
    """The account of a bridge's run; see `RunWriter`.

    Args:
        folder: the run folder.
        start_step: steps done before this start; what later steps left behind is dropped.
        num_steps: of the whole run.
        is_first: whether this rank writes.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int, is_first: bool) -> None:
        self._moment = "before the first step"
        super().__init__(
            folder,
            start_step=start_step,
            num_steps=num_steps,
            is_first=is_first,
            moment=lambda: self._moment,
        )

    @contextmanager
    def during(self, moment: str) -> Iterator[None]:
        """Held while the run does something else than steps, for those who watch it.

        Args:
            moment: what it does, in words.
        """
        before, self._moment = self._moment, moment
        try:
            yield
        finally:
            self._moment = before

    def step(self, values: Mapping[str, Any]) -> None:
        """Write down a step; words every few steps and at the end.

        Args:
            values: figures of the step, with step, loss, rows_per_second and eta_seconds; None
                where there is no number.
        """
        if not self.is_first:
            return
        self.show_bar()
        self._write(self._lines, values)
        step = values["step"]
        self._moment = f"step {step + 1}"
        self._show({f"train/{name}": v for name, v in values.items() if name != "step"}, step)
        loss = "not finite" if values["loss"] is None else f"{values['loss']:.4f}"
        brief = f"loss {loss}, {values['rows_per_second']:.1f} rows/s"
        line = f"step {step}/{self.num_steps}, {brief}, eta {duration(values['eta_seconds'])}"
        is_due = step % STEPS_PER_LINE == 0 or step == self.num_steps
        self._say_step(step, brief, line if is_due else None)

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write down the means of a validation."""
        if not self.is_first:
            return
        self._write(self._validation_lines, {"step": step, **scores})
        self._show({f"valid/{name}": value for name, value in scores.items()}, step)
        words = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"validation after step {step}: {words}")
