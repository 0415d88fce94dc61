"""What a row of the table of faults is made of: a run on real processes, and how it is judged.

A fault is a function that is given a `Drill`, starts launch/train.py as users do, strikes, waits
for the end and returns a `FaultRow`:

    @fault("SIGKILL of one rank at a random step", ranks=2)
    def kill_one_rank(drill: Drill) -> FaultRow:
        with drill.start(2) as run:
            run.wait_for_step(6)
            run.ranks()[1].kill()
            struck = run.strike()
            run.wait_for_end()
            detected = struck.seconds()
        with drill.start(2, "--resume", "auto") as run:
            recovered = run.wait_for_recovery(struck)
            run.wait_for_end()
        return drill.judge(run, struck, detected_s=detected, recovered_s=recovered)

    ROWS = [kill_one_rank]

What goes wrong in the drill itself raises `FaultError`, and the row says FAIL and why.
"""

import json
import random
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import psutil

from meloformer.errors import CheckpointError
from meloformer.training.checkpoint import check_files, step_folders
from meloformer.training.metrics import METRICS_NAME
from tests.training.launching import ENVIRONMENT, ROOT, torchrun

NUM_STEPS, SAVE_EVERY, ROWS_A_STEP = 12, 4, 4
# Of any wait: a start of four ranks on two cores that others use takes a minute.
TIME_LIMIT_SECONDS = 300.0
LAST_LINES = 30
GRACE_SECONDS = 10.0  # for what ends on its own after the launcher
_POLL_SECONDS = 0.02
_MARK = "MELOFORMER_DRILL"
_LAUNCHERS_OWN = re.compile(
    r"^Traceback \(most recent call last\):\n(?:  .*\n)+(?=[\w.]*ChildFailedError)", re.MULTILINE
)


class FaultError(Exception):
    """The drill did not go as it must; says what is wrong."""


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
        except (FaultError, OSError, psutil.Error, ValueError, KeyError) as error:
            found = FaultRow(outcome=f"FAIL: {error or repr(error)}")
        return replace(found, fault=self.words, ranks=self.ranks)


def fault(words: str, *, ranks: int) -> Callable[[Callable[["Drill"], FaultRow]], Fault]:
    """Make a row of a function that plays it."""
    return lambda function: Fault(words, ranks, function)


@dataclass(frozen=True)
class Strike:
    """The moment of a fault.

    Args:
        time: of the monotonic clock.
        step: steps that were reported by then.
        num_starts: starts of the run by then.
        num_said: characters that the run had said by then.
    """

    time: float
    step: int
    num_starts: int
    num_said: int

    def seconds(self) -> float:
        """Since then."""
        return time.monotonic() - self.time


class Run:
    """A run in the background, with all that it says in a file.

    Args:
        command: with the launcher.
        folder: --output.
        log: file for what launcher and ranks say; a later run adds to it.
        environment: variables on top of the usual ones.
    """

    def __init__(self, command: list[str], folder: Path, log: Path, environment: dict) -> None:
        self.folder, self._log, self._mark = folder, log, uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        self._skipped = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.launcher = subprocess.Popen(
                command,
                cwd=ROOT,
                env=ENVIRONMENT | environment | {_MARK: self._mark},
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill_all()

    def said(self, since: int = 0) -> str:
        """What launcher and ranks of this start have said, from a character on."""
        return self._log.read_bytes()[self._skipped :].decode(errors="replace")[since:]

    def last_lines(self, number: int = LAST_LINES) -> str:
        """The end of what was said, without the path through the launcher's own code."""
        said = _LAUNCHERS_OWN.sub("", self.said())
        lines = [line for line in said.splitlines() if line.strip()]
        return "\n".join(lines[-number:])

    def has_said(self, pattern: str, *, since: int = 0) -> bool:
        """Whether an expression is found in what was said since a character."""
        return re.search(pattern, self.said(since)) is not None

    def says_at_the_end(self, pattern: str) -> list[str]:
        """A complaint where the last lines do not hold the reason, an expression."""
        if re.search(pattern, self.last_lines()):
            return []
        return [f"no {pattern!r} on the last lines: {self.last_lines()}"]

    def train_log(self) -> list[str]:
        """Lines of train.log; none where there is no such file yet."""
        path = self.folder / "train.log"
        return path.read_text().splitlines() if path.exists() else []

    def losses(self) -> dict[int, float]:
        """Loss by step, of the lines that are whole."""
        return read_losses(self.folder)

    def starts(self) -> list[dict]:
        """One entry per start, as run.json has them."""
        path = self.folder / "run.json"
        return json.loads(path.read_text())["starts"] if path.exists() else []

    def strike(self) -> Strike:
        """Call it right after the fault: the time, and how far the run had come."""
        step = max(self.losses(), default=0)
        return Strike(time.monotonic(), step, len(self.starts()), len(self.said()))

    def processes(self) -> list[psutil.Process]:
        """All that live of what was started, launcher included, oldest first.

        Found by a variable of their own: what has lost its parent is here too.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(found, key=lambda entry: entry[:2])]

    def ranks(self) -> dict[int, psutil.Process]:
        """Processes of the ranks that live, by rank; no launcher, no data worker."""
        found, pids = {}, set()
        for process in self.processes():
            with suppress(psutil.Error):
                environment = process.environ()
                if "RANK" in environment and "WORLD_SIZE" in environment:
                    # Children of a rank inherit its environment, and are younger.
                    if process.ppid() not in pids:
                        found[int(environment["RANK"])] = process
                    pids.add(process.pid)
        return found

    def children(self, rank: int) -> list[psutil.Process]:
        """What a rank has started: data workers above all."""
        return self.ranks()[rank].children(recursive=True)

    def left_behind(self) -> list[str]:
        """Processes that outlive the launcher, after a moment to end."""
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return [f"process {process.pid} outlives the launcher" for process in left]

    def kill_all(self) -> None:
        """SIGKILL for the launcher and all that it started, which a stopped process obeys too."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()

    def wait_until(
        self,
        is_so: Callable[[], object],
        what: str,
        *,
        limit_seconds: float = TIME_LIMIT_SECONDS,
        poll_seconds: float = _POLL_SECONDS,
        while_it_runs: bool = True,
    ) -> None:
        """Wait for something, in words.

        Raises:
            FaultError: it took too long, or the launcher has ended before it.
        """
        deadline = time.monotonic() + limit_seconds
        while not is_so():
            ended = while_it_runs and self.launcher.poll() is not None
            if ended and not is_so():
                raise FaultError(
                    f"the run ended with {self.launcher.returncode} before {what}: "
                    f"{self.last_lines()}"
                )
            if time.monotonic() > deadline:
                raise FaultError(
                    f"no {what} within {limit_seconds:.0f} s; last lines: {self.last_lines()}"
                )
            time.sleep(poll_seconds)

    def wait_for_step(self, step: int) -> None:
        """Wait until a step has been reported."""
        self.wait_until(lambda: max(self.losses(), default=0) >= step, f"step {step}")

    def wait_for_words(self, pattern: str, *, since: int = 0) -> str:
        """Wait until something is said; returns the first match of the expression."""
        self.wait_until(lambda: re.search(pattern, self.said(since)), f"word of {pattern!r}")
        found = re.search(pattern, self.said(since))
        assert found
        return found[0]

    def wait_for_recovery(self, struck: Strike) -> float:
        """Wait for the first step of a start after the fault; seconds since the fault."""

        def has_gone_on() -> bool:
            starts = self.starts()
            return len(starts) > struck.num_starts and "first_step_s" in starts[-1]

        self.wait_until(has_gone_on, "step after the fault")
        return struck.seconds()

    def wait_for_end(self, limit_seconds: float = TIME_LIMIT_SECONDS) -> int:
        """Wait for the end; the launcher's status.

        Raises:
            FaultError: it hangs.
        """
        try:
            return self.launcher.wait(limit_seconds)
        except subprocess.TimeoutExpired as error:
            raise FaultError(
                f"a hang: no end within {limit_seconds:.0f} s; last lines: {self.last_lines()}"
            ) from error


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
            *flags(num_ranks, data=self.shards, output=folder, **changes),
            *more,
        ]
        return Run(command, folder, self.output / f"{folder.name}.log", environment or {})

    def judge(
        self,
        run: Run,
        struck: Strike,
        *,
        num_ranks: int,
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


def limit(process: psutil.Process, resource: int, amount: int) -> None:
    """Let a process that runs have no more of something from now on."""
    _, most = process.rlimit(resource)
    process.rlimit(resource, (amount, most))


def read_losses(folder: Path) -> dict[int, float]:
    """Loss by step of a run folder, of the lines that are whole."""
    path = folder / METRICS_NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def compare(found: dict[int, float], expected: dict[int, float]) -> tuple[float, list[str]]:
    """Largest gap between losses of the same steps, and what is wrong about them."""
    common = found.keys() & expected.keys()
    gap = max((abs(found[step] - expected[step]) for step in common), default=float("inf"))
    missing = sorted(expected.keys() ^ found.keys())
    return gap, [
        *([f"steps {missing} on one side only"] if missing else []),
        *([f"losses differ by {gap:g}"] if gap else []),
    ]


def damaged_checkpoints(folder: Path) -> list[str]:
    """Why each checkpoint that does not verify does not; one complaint where there is none."""
    wrong = [] if step_folders(folder) else ["no checkpoint"]
    for checkpoint in step_folders(folder):
        try:
            check_files(checkpoint)
        except CheckpointError as error:
            wrong.append(str(error))
    return wrong
