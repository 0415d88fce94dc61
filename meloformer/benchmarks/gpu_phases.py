"""What the phases of a run take, with phases and without, beside what an earlier release told."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from meloformer.benchmarks.bench_tables import plain, rounded, table_of
from meloformer.training.metrics import BYTES_PER_GIB
from meloformer.training.run_folder import RUN_NAME

# Peak of each phase that an earlier release gave, of a model and rows of its own.
EARLIER_GB = {1: 10, 2: 10, 3: 52}


def phases_of(run: Path, name: str) -> list[dict[str, Any]]:
    """What a run wrote down about its phases, as rows; those that are over.

    Args:
        run: run folder.
        name: begins the name of each row.

    Raises:
        ValueError: none is over.
        FileNotFoundError: the run has not begun.
    """
    start = json.loads((run / RUN_NAME).read_text())["starts"][-1]
    if not start.get("phases"):
        raise ValueError("no phase is over")
    return [
        {"name": f"{name}, phase {facts['phase']}", **facts}
        | {"steps": facts["last_step"] - facts["first_step"] + 1}
        for facts in start["phases"]
    ]


def is_told(run: Path, num_steps: int) -> bool:
    """Whether a run has told of its last phase too."""
    try:
        return phases_of(run, "")[-1]["last_step"] == num_steps
    except (FileNotFoundError, ValueError):
        return False


def phases_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `phases_of` for people."""
    columns = {
        "name": ("", plain),
        "steps": ("steps", plain),
        "micro_batch_rows": ("rows of a micro-batch", plain),
        "num_workers": ("workers", plain),
        "seconds": ("s, compiling too", rounded(1)),
        "seconds_in_steps": ("s in steps", rounded(1)),
        "memory": ("peak, GiB", _gibibytes),
        "memory_held": ("held, GiB", _gibibytes),
        "memory_host": ("host, GiB", _gibibytes),
        "memory_workers": ("workers, GiB", _gibibytes),
        "earlier": ("earlier release, GB", plain),
    }
    told = [dict(row) | {"earlier": EARLIER_GB[row["phase"]]} for row in rows]
    return table_of("phases, on and off (the earlier release: another model)", told, columns)


def _gibibytes(size: float) -> str:
    return f"{size / BYTES_PER_GIB:.2f}"
