"""What a checkpoint costs a run: the same steps with none, with one beside them, with one between.

In turns and in one process, so that a machine that drifts does so for all three alike.
"""

import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from meloformer.benchmarks.bench_tables import percent, plain, rounded, table_of
from meloformer.benchmarks.stepper import Stepper
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.background import SaveOutcome
from meloformer.training.checkpoint import FOLDER_NAME, TrainingState, step_folders
from meloformer.training.saving import Checkpoints

WAYS = ("off", "background", "between steps")
# The length of run that the goal of 5 % speaks of; it holds one save at the default --save_every.
RUN_STEPS = 200
_COLUMNS = {
    "way": ("checkpoint", plain),
    "seconds": ("s a turn", rounded(3)),
    "longer": ("s longer", rounded(3)),
    "share": (f"of {RUN_STEPS} steps", percent),
    "held": ("step held s", rounded(3)),
    "sealed": ("sealed after s", rounded(3)),
    "megabytes": ("MB", rounded(1)),
}


@dataclass
class Way:
    """One of the three, and what was measured of it."""

    checkpoints: Checkpoints | None
    seconds: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    outcomes: list[SaveOutcome] = field(default_factory=list)


def measure_saving(stepper: Stepper, folder: Path, *, steps: int, turns: int) -> dict[str, Any]:
    """Time turns of some steps; collective.

    Args:
        stepper: a candidate in motion.
        folder: an empty one on the disk that is asked about; what is written is removed.
        steps: of a turn, with one save after the first of them.
        turns: of each way.

    Returns:
        Figures by way.
    """
    ways = {name: Way(None) for name in WAYS}
    for name in WAYS[1:]:
        ways[name].checkpoints = Checkpoints(
            stepper.engine,
            folder / name.replace(" ", "_"),
            stepper.trainee.config,
            keep_last=1,
            keep_every=0,
            is_background=name == "background",
            tell=ways[name].outcomes.append,
        )
    number = 0
    # The first turn of each makes its memory on the host.
    for turn in range(turns + 1):
        for way in ways.values():
            number += 1
            began = time.perf_counter()
            for step in range(steps):
                stepper.step()
                if step == 0 and way.checkpoints:
                    held = time.perf_counter()
                    way.checkpoints.save(_state(stepper, number))
                    way.held.append(time.perf_counter() - held)
            way.seconds.append(time.perf_counter() - began)
            # Not in the turn of another way; a run is held by that only if saves follow closely.
            if way.checkpoints:
                way.checkpoints.settle()
            if turn == 0:
                way.seconds.clear()
                way.held.clear()
                way.outcomes.clear()
    return figures_of(ways, folder, steps)


def figures_of(ways: dict[str, Way], folder: Path, steps: int) -> dict[str, Any]:
    """What was measured, by way; removes the checkpoints.

    Args:
        ways: with their turns.
        folder: under which each of them has written.
        steps: of a turn.
    """
    without = ways["off"]
    pace = statistics.median(without.seconds) / steps
    found: dict[str, Any] = {}
    for name, way in ways.items():
        found[name] = {"seconds": statistics.median(way.seconds)}
        if way.checkpoints:
            # Turn by turn: neighbours in time saw the same machine.
            pairs = zip(way.seconds, without.seconds, strict=True)
            longer = statistics.median(mine - other for mine, other in pairs)
            run = folder / name.replace(" ", "_")
            (sealed,) = step_folders(run)
            size = sum(path.stat().st_size for path in sealed.rglob("*") if path.is_file())
            found[name] |= {
                "longer": longer,
                "share": longer / (pace * RUN_STEPS),
                "held": statistics.median(way.held),
                "sealed": statistics.median(outcome.seconds for outcome in way.outcomes),
                "megabytes": size / 1e6,
            }
            shutil.rmtree(run / FOLDER_NAME)
    return found


def saving_table(title: str, found: dict[str, Any]) -> Table:
    """The figures for people."""
    return table_of(title, [{"way": name} | row for name, row in found.items()], _COLUMNS)


def _state(stepper: Stepper, step: int) -> TrainingState:
    return TrainingState(
        run_id="bench",
        step=step,
        cursor=stepper.stream.state(),
        tokens_seen=0,
        skipped_steps=0,
        world_size=stepper.settings.ranks.world_size,
        ds_config=stepper.settings.ds_config,
        tokenizer_fingerprint=fingerprint(),
        settings={},
    )
