"""Reading a run from outside, while it writes: its facts, and its steps as they come."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.errors import CheckpointError
from meloformer.training.metrics import LOG_NAME, METRICS_NAME, VALIDATION_NAME
from meloformer.training.run_folder import RUN_NAME, Run

# What is kept of a line of metrics.jsonl; a run of a million steps has gigabytes of the rest.
COLUMNS = (
    "step",
    "loss",
    "tokens",
    "nats_per_note",
    "lr",
    "grad_norm",
    "step_seconds",
    "tokens_per_second",
    "rows_per_second",
    "mfu",
    "padding",
    "data_wait",
    "rank_seconds_median",
    "rank_seconds_max",
    "slowest_rank",
    "graphs",
    "memory",
    "memory_host",
    "gpu_utilisation",
    "skipped",
    "failed_saves",
    "eta_seconds",
)
_LONGEST_LOG_LINE_BYTES = 4096


def newest_folder(runs: Path = Path("runs")) -> Path:
    """The run that was started last.

    Raises:
        CheckpointError: there is none.
    """
    found = list(runs.glob(f"*/{RUN_NAME}"))
    if not found:
        raise CheckpointError(
            f"{runs}/: found no run; allowed: a folder with a {RUN_NAME}; name it with --run"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


class LineReader:
    """Complete JSON lines of a file that another process appends to.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._last = 0, b""

    def read_new(self) -> tuple[list[dict[str, Any]], bool]:
        """Lines since the last call.

        Returns:
            The lines, and whether they begin at the file's start again: a run that is resumed or
            goes back to a checkpoint cuts off the steps that it repeats.
        """
        try:
            with self.path.open("rb") as file:
                # No two lines are alike, for no two steps take the same time.
                file.seek(self._offset - len(self._last))
                is_new = not self._offset or file.read(len(self._last)) != self._last
                if is_new:
                    self._offset = file.seek(0)
                text = file.read()
        except FileNotFoundError:
            return [], False
        # A line that is not finished is read with its end.
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = whole.splitlines(keepends=True)
        if found or is_new:
            self._last = found[-1] if found else b""
        lines = []
        for line in found:
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # cut by a crash; the run forgets it when it goes on
        return lines, is_new


class RunReader:
    """The run of a folder as it stands.

    Args:
        folder: the run folder.

    Attributes:
        run: what run.json says.
        validations: lines of validation.jsonl.

    Raises:
        CheckpointError: there is no run in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.validations: list[dict[str, Any]] = []
        self._columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self._steps = LineReader(folder / METRICS_NAME)
        self._validations = LineReader(folder / VALIDATION_NAME)
        self.refresh()

    def refresh(self) -> None:
        """Read what has been written since.

        Raises:
            CheckpointError: the folder is gone.
        """
        self.run = Run.load(self.folder)
        lines, is_new = self._steps.read_new()
        if is_new:
            self._columns = {name: [] for name in COLUMNS}
        for line in lines:
            # Lines of another kind stand between those of steps.
            if "loss" in line:
                for name, column in self._columns.items():
                    value = line.get(name)
                    column.append(np.nan if value is None else float(value))
        lines, is_new = self._validations.read_new()
        self.validations = lines if is_new else self.validations + lines

    @property
    def kind(self) -> str:
        """What is trained: a size of MuseFormer, or the type of a bridge."""
        settings = self.run.settings
        return str(settings.get("model_size") or settings.get("model_type", "?"))

    @property
    def is_bridge(self) -> bool:
        """Whether it is no MuseFormer: rows are counted in place of tokens."""
        return "model_size" not in self.run.settings and "model_type" in self.run.settings

    @property
    def num_read(self) -> int:
        """Steps that were read."""
        return len(self._columns["step"])

    @property
    def last_step(self) -> int:
        """The newest step; 0 before the first."""
        return int(self._columns["step"][-1]) if self.num_read else 0

    @property
    def is_finished(self) -> bool:
        """Whether every step is done."""
        return self.last_step >= self.run.num_steps

    def column(self, name: str) -> np.ndarray:
        """(num_read,) float64, not a number where the run has none."""
        return np.array(self._columns[name])

    def of_last_start(self, name: str) -> np.ndarray:
        """The same, of the steps since the run was last started."""
        first = self.run.starts[-1]["step"] if self.run.starts else 0
        return self.column(name)[self.column("step") > first]

    def written_at(self) -> float:
        """When the run last wrote something, in seconds since 1970."""
        names = (METRICS_NAME, VALIDATION_NAME, LOG_NAME, RUN_NAME)
        paths = [self.folder / name for name in names]
        return max(path.stat().st_mtime for path in paths if path.exists())

    def last_log_line(self) -> str:
        """The end of train.log, without its date."""
        path = self.folder / LOG_NAME
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LONGEST_LOG_LINE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        # Date, time, level, message.
        return lines[-1].split(" ", 3)[-1] if lines else ""
