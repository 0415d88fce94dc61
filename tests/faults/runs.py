"""A run of launch/train.py in the background, on real processes: its words, ranks, steps, end."""

import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from meloformer.errors import CheckpointError
from meloformer.training.checkpoint import check_files, step_folders
from meloformer.training.metrics import METRICS_NAME
from tests.training.launching import ENVIRONMENT, ROOT

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

    def end_by_fault(self, struck: Strike, reason: str) -> tuple[float, list[str]]:
        """Wait for the end that a fault brings.

        Args:
            struck: its moment.
            reason: expression that the last lines must hold.

        Returns:
            Seconds since the fault, and complaints: about the end, and about what it left.
        """
        status = self.wait_for_end()
        seconds = struck.seconds()
        return seconds, [
            *([] if status else ["the launcher ended with 0"]),
            *self.says_at_the_end(reason),
            *self.left_behind(),
            *(damaged_checkpoints(self.folder) if step_folders(self.folder) else []),
        ]


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


def damaged_checkpoints(folder: Path) -> list[str]:
    """Why each checkpoint that does not verify does not; one complaint where there is none."""
    wrong = [] if step_folders(folder) else ["no checkpoint"]
    for checkpoint in step_folders(folder):
        try:
            check_files(checkpoint)
        except CheckpointError as error:
            wrong.append(str(error))
    return wrong
