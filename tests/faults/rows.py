"""What a row of the table of faults is made of: a run on real processes, and how it is judged.

A fault is a function that is given a `Drill`, starts launch/train.py as users do, strikes, waits
for the end and returns a `FaultRow`:

    @fault("SIGKILL of one rank at a random step", ranks=2)
    def kill_one_rank(drill: Drill) -> FaultRow:
        with drill.start(2) as run:
            run.wait_for_step(6)
            run.ranks()[1].kill()
            struck = run.strike()
            detected, complaints = run.end_by_fault(struck, "SIGKILL")
        return drill.go_on(struck, detected_s=detected, complaints=complaints)

    ROWS = [kill_one_rank]

What goes wrong in the drill itself raises `FaultError`, and the row says FAIL and why.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf, isnan
from pathlib import Path
from typing import Any

from meloformer.training.checkpoint import FOLDER_NAME
from tests.faults.runs import FaultError, Run, Strike, damaged_checkpoints, read_losses
from tests.training.launching import torchrun

NUM_STEPS, SAVE_EVERY, ROWS_A_STEP = 12, 4, 4
AGAIN = ("--resume", "auto")


class SkippedError(Exception):
    """The fault cannot be played here; says why."""


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """How a run took a fault.

    Args:
        fault: in words; filled in by the fault itself.
        ranks: processes of the run; likewise.
        detected_s: from the fault to the first word about it; None where none came.
        recovered_s: from the fault to the first step after it.
        steps_lost: steps that were trained again.
        loss_difference: largest gap to the losses of the undisturbed run.
        outcome: PASS, FAIL and why, or SKIPPED and why.
    """

    fault: str = ""
    ranks: int = 0
    detected_s: float | None = None
    recovered_s: float | None = None
    steps_lost: int | None = None
    loss_difference: float | None = None
    outcome: str


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Args:
        words: what befalls the run.
        ranks: processes of the run.
        function: plays it.
    """

    words: str
    ranks: int
    function: Callable[["Drill"], FaultRow]

    @property
    def name(self) -> str:
        """By which the row is asked for."""
        return self.function.__name__

    def __call__(self, drill: "Drill") -> FaultRow:
        """Play the fault; a drill that goes wrong is a row that says so."""
        try:
            found = self.function(drill)
        except SkippedError as why:
            found = FaultRow(outcome=f"SKIPPED: {why}")
        except Exception as error:  # whatever it is, the other rows are played
            found = FaultRow(outcome=f"FAIL: {str(error) or repr(error)}")
        return replace(found, fault=self.words, ranks=self.ranks)


def fault(words: str, *, ranks: int) -> Callable[[Callable[["Drill"], FaultRow]], Fault]:
    """Make a row of a function that plays it."""
    return lambda function: Fault(words, ranks, function)


@dataclass
class Drill:
    """What a fault is given.

    Args:
        shards: to train on.
        output: folder for this row alone; the run is at `output / "run"`.
        undisturbed: losses by step of a run that nothing befell, given the ranks and the flags
            that differ from the usual ones; played once for all rows.
        seed: of the moments that are drawn.
    """

    shards: Path
    output: Path
    undisturbed: Callable[..., dict[int, float]]
    seed: int = 0
    draws: random.Random = field(init=False)

    def __post_init__(self) -> None:
        # Of a row's own: a row that is played alone strikes at the same moment.
        self.draws = random.Random(f"{self.seed} {self.output.name}")

    def start(
        self,
        num_ranks: int,
        *more: str,
        launcher: list[str] | None = None,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
        **changes: object,
    ) -> Run:
        """Start a run in the background.

        Args:
            num_ranks: of the run.
            more: further flags of launch/train.py.
            launcher: command in front of the script; torchrun on one machine if not given.
            folder: --output; `output / "run"` if not given.
            environment: variables on top of the usual ones.
            changes: flags with other values than the usual ones.
        """
        folder = folder or self.output / "run"
        command = [
            *(torchrun(num_ranks) if launcher is None else launcher),
            "launch/train.py",
            *flags(num_ranks, **{"data": self.shards, "output": folder} | changes),
            *more,
        ]
        return Run(command, folder, self.output / f"{folder.name}.log", environment or {})

    def go_on(
        self,
        struck: Strike,
        *more: str,
        num_ranks: int = 2,
        launcher: list[str] | None = None,
        data: Path | None = None,
        detected_s: float | None = None,
        reached: int | None = None,
        complaints: Iterable[str] = (),
    ) -> FaultRow:
        """Start a run that ended by the fault again, with --resume auto, and judge it at its end.

        Args:
            struck: the moment of the fault.
            more: further flags of launch/train.py.
            num_ranks: of the run.
            launcher: see `start`.
            data: shard folder, if it is not that of all rows.
            detected_s: see `FaultRow`.
            reached: see `judge`.
            complaints: likewise.
        """
        flags = (*AGAIN, *more)
        shards = data or self.shards
        with self.start(num_ranks, *flags, launcher=launcher, data=shards) as run:
            return self.finish(
                run,
                struck,
                num_ranks=num_ranks,
                detected_s=detected_s,
                reached=reached,
                complaints=complaints,
            )

    def finish(self, run: Run, struck: Strike, **seen: Any) -> FaultRow:
        """Wait for the first step after the fault and for the end, then `judge`."""
        recovered = run.wait_for_recovery(struck)
        run.wait_for_end()
        return self.judge(run, struck, recovered_s=recovered, **seen)

    def judge(
        self,
        run: Run,
        struck: Strike,
        *,
        num_ranks: int = 2,
        detected_s: float | None = None,
        recovered_s: float | None = None,
        reached: int | None = None,
        complaints: Iterable[str] = (),
        **changes: object,
    ) -> FaultRow:
        """Compare what is left of a run with the undisturbed one.

        Args:
            run: its last start, at its end.
            struck: the moment of the fault.
            num_ranks: of the run.
            detected_s: see `FaultRow`.
            recovered_s: see `FaultRow`.
            reached: the last step before the run ended, if it went on after the fault.
            complaints: what else is wrong; empty ones count for nothing.
            changes: flags with other values than the usual ones.
        """
        starts = run.starts()
        again = [start["step"] for start in starts[struck.num_starts :]]
        gap, found = compare(run.losses(), self.undisturbed(num_ranks, **changes))
        wrong = [
            *filter(None, complaints),
            *([] if run.launcher.poll() == 0 else [f"ended with {run.launcher.poll()}"]),
            *found,
            *damaged_checkpoints(run.folder),
            *run.left_behind(),
            *(f"{path} is left" for path in (run.folder / FOLDER_NAME).glob(".step-*")),
            *([] if (run.folder / "model").is_dir() else ["no finished model"]),
        ]
        return FaultRow(
            detected_s=detected_s,
            recovered_s=recovered_s,
            steps_lost=sum(max((reached or struck.step) - step, 0) for step in again[:1]),
            loss_difference=gap,
            outcome=f"FAIL: {'; '.join(wrong)}" if wrong else "PASS",
        )


def flags(num_ranks: int, **changes: object) -> list[str]:
    """Flags of the usual run: the smallest with some checkpoints, of the same rows on any ranks."""
    values: dict[str, object] = {
        "model_size": "tiny",
        "max_seq_len": 512,
        "batch_size": 1,
        "gradient_accumulation_steps": max(ROWS_A_STEP // num_ranks, 1),
        "num_workers": 0,
        "validation_rows": 1,
        "validate_every": 0,
        "save_every": SAVE_EVERY,
        "max_steps": NUM_STEPS,
        "samples": 0,
        "device": "cpu",
    }
    words = {f"--{name}": str(value) for name, value in (values | changes).items()}
    return [word for pair in words.items() for word in pair]


def train_undisturbed(
    shards: Path, output: Path, num_ranks: int, **changes: object
) -> dict[int, float]:
    """Losses by step of a run that nothing befalls.

    Raises:
        FaultError: it fails all the same.
    """
    folder = output / "run"
    words = flags(num_ranks, data=shards, output=folder, **changes)
    command = [*torchrun(num_ranks), "launch/train.py", *words]
    with Run(command, folder, output / "run.log", {}) as run:
        if status := run.wait_for_end():
            raise FaultError(f"the undisturbed run ended with {status}: {run.last_lines()}")
    return read_losses(folder)


def compare(found: dict[int, float], expected: dict[int, float]) -> tuple[float, list[str]]:
    """Largest gap between losses of the same steps, and what is wrong about them."""
    gaps = {step: abs(found[step] - expected[step]) for step in found.keys() & expected.keys()}
    # What is no number is larger than any: max() alone may pass over it.
    gap = max((inf if isnan(gap) else gap for gap in gaps.values()), default=inf)
    missing = sorted(expected.keys() ^ found.keys())
    return gap, [
        *([f"steps {missing} on one side only"] if missing else []),
        *([f"losses differ by {gap:g}"] if gap else []),
    ]
