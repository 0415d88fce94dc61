"""What signals do to a process that listens: the first counts, and none ends the work."""

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meloformer.interrupts import leave_signals_to_parent
from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS

# A process that listens, says so, and works until it is asked to stop or ended.
_LISTENER = """
import os, signal, sys, time
from meloformer import interrupts
from meloformer.interrupts import asked_to_stop, begin_work, listen
if sys.argv[3:]:
    interrupts._SAME_SECONDS = float(sys.argv[3])
listen()
if sys.argv[1] == "working":
    begin_work()
print("ready", flush=True)
while not asked_to_stop():
    time.sleep(0.01)
print(f"asked by {asked_to_stop().name}", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def listener(
    state: str, seconds_after: float, *same_seconds: float, **variables: str
) -> Iterator[subprocess.Popen]:
    """Args: same_seconds: between two Ctrl-C that count as one, if not those of the product."""
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENER, state, *map(str, (seconds_after, *same_seconds))],
        cwd=ROOT,
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_counts_and_none_ends_the_work(number: signal.Signals) -> None:
    with listener("working", 0.5, TIME_LIMIT_SECONDS) as process:
        process.send_signal(number)
        assert process.stdout and process.stdout.readline() == f"asked by {number.name}\n"
        for later in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            process.send_signal(later)
        assert process.wait(TIME_LIMIT_SECONDS) == 0


def test_a_second_ctrl_c_ends_at_once_but_not_one_that_a_launcher_hands_on() -> None:
    with listener("working", TIME_LIMIT_SECONDS) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout and process.stdout.readline()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIME_LIMIT_SECONDS) == 130
    with listener("working", TIME_LIMIT_SECONDS, TIME_LIMIT_SECONDS) as process:
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.poll() is None


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 0, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_before_there_is_work_a_process_that_is_alone_ends_at_once(
    number: signal.Signals, status: int, name: str
) -> None:
    with listener("importing", TIME_LIMIT_SECONDS) as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
        assert process.returncode == status
        assert said == f"stopped by {name} before the first step, nothing to save\n"


def test_before_there_is_work_one_of_several_ranks_waits_for_the_others() -> None:
    with listener("importing", 0, WORLD_SIZE="2", RANK="1") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout and process.stdout.readline() == "asked by SIGTERM\n"


def _work(ready: "multiprocessing.synchronize.Event") -> None:
    leave_signals_to_parent()
    ready.set()
    time.sleep(60)


def test_a_data_worker_heeds_its_rank_alone() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_work, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(TIME_LIMIT_SECONDS)
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive(), "a signal of another process"
    worker.terminate()
    worker.join(TIME_LIMIT_SECONDS)
    assert worker.exitcode == 0


def test_a_data_worker_ends_with_a_rank_that_is_killed() -> None:
    code = (
        "import multiprocessing, time\n"
        "from meloformer.interrupts import leave_signals_to_parent\n"
        "def work(ready):\n"
        "    leave_signals_to_parent()\n"
        "    ready.set()\n"
        "    time.sleep(3600)\n"
        "context = multiprocessing.get_context('fork')\n"
        "ready = context.Event()\n"
        "worker = context.Process(target=work, args=(ready,), daemon=True)\n"
        "worker.start()\n"
        "ready.wait()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as rank:
        assert rank.stdout
        worker = int(rank.stdout.readline())
        rank.kill()
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while _lives(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
