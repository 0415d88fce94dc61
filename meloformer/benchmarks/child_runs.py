"""Measurements in processes of their own: one that fails or hangs costs no other its figures."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Args:
        seconds: by the clock.
        reason: why it did not end well; "" it did.
    """

    seconds: float
    reason: str = ""


def run_child(
    command: Sequence[str],
    *,
    limit_seconds: float,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    is_done: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a command to its end or its time limit; nothing that it started goes on after it.

    Args:
        command: program and arguments.
        limit_seconds: after which all of it is killed.
        log: takes all that it says; the last line is the reason where it fails.
        cwd: where it runs.
        environment: variables besides those of this process.
        is_done: asked about once a second: whether what the command is run for is there; then it
            is ended, and has ended well.
    """
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(process, began + limit_seconds, is_done)
        except subprocess.TimeoutExpired:
            return Ended(
                seconds=time.monotonic() - began, reason=f"stopped after {limit_seconds:.0f} s"
            )
        finally:
            # Its data workers too, whether it has ended or not.
            kill_all(process)
    seconds = time.monotonic() - began
    if not status:
        return Ended(seconds=seconds)
    return Ended(seconds=seconds, reason=f"status {status}: {last_line(log)}")


def _wait(process: subprocess.Popen, deadline: float, is_done: Callable[[], bool]) -> int:
    while True:
        left = deadline - time.monotonic()
        try:
            return process.wait(min(max(left, 0), _SECONDS_BETWEEN_LOOKS))
        except subprocess.TimeoutExpired:
            if is_done():
                return 0
            if left <= _SECONDS_BETWEEN_LOOKS:
                raise


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


def kill_all(process: subprocess.Popen) -> None:
    """End a process that leads its session, ended or not, and all that it has started."""
    # Ranks that a launcher starts lead sessions of their own, and are in no group of ours.
    descendants = []
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()
