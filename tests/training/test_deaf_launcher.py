"""A launcher that hears no signal, while what it has started does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psutil
import pytest

from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS

# Starts one rank, as launchers do, says who both are, and ends with the rank's status.
_LAUNCHER = """
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
rank.stdout.readline()
print(os.getpid(), flush=True)
print(rank.stdout.read(), end="", flush=True)
sys.exit(rank.wait())
"""
_RANK = """
import time
from meloformer import interrupts
from meloformer.interrupts import asked_to_stop, begin_work, listen
interrupts._SAME_SECONDS = float("inf")  # a Ctrl-C that comes twice, however late, is one
begin_work()
listen()
print("ready", flush=True)
while not asked_to_stop():
    time.sleep(0.01)
print("asked by", asked_to_stop().name)
"""
# A terminal that is closed when the launcher runs and the process that began it does not know it.
_HANG_UP_AT_ONCE = """
import os, signal, subprocess, sys
from meloformer.training import deaf_launcher
begin = subprocess.Popen
def begin_and_hang_up(*arguments, **options):
    launcher = begin(*arguments, **options)
    os.kill(os.getpid(), signal.SIGHUP)
    return launcher
subprocess.Popen = begin_and_hang_up
sys.exit(deaf_launcher.run_deaf(["sleep", "3600"]))
"""
DEAF = [sys.executable, "-m", "meloformer.training.deaf_launcher"]


@contextmanager
def start(*command: str) -> Iterator[subprocess.Popen]:
    deaf = subprocess.Popen(
        [*DEAF, *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup it is ignored, and what is started inherits that.
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    started = psutil.Process(deaf.pid)
    with deaf:
        try:
            yield deaf
        finally:
            # Nobody ends by itself who did not hear what the test has sent.
            with suppress(psutil.NoSuchProcess):
                for process in [*started.children(recursive=True), started]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)]
)
def test_a_signal_to_the_whole_group_and_the_launcher_reaches_the_rank_alone(
    number: signal.Signals, status: int
) -> None:
    with start(sys.executable, "-c", _LAUNCHER, _RANK) as deaf:
        assert deaf.stdout
        launcher = int(deaf.stdout.readline())
        os.kill(launcher, number)
        os.killpg(deaf.pid, number)
        said, _ = deaf.communicate(timeout=TIME_LIMIT_SECONDS)
    assert deaf.returncode == status
    assert said == f"asked by {number.name}\n"


def test_a_rank_that_starts_after_the_signal_hears_of_it_too() -> None:
    late = f"import time; time.sleep(0.7)\n{_RANK}"
    code = _LAUNCHER.replace("rank = ", "print('up', flush=True)\nrank = ")
    with start(sys.executable, "-c", code, late) as deaf:
        assert deaf.stdout and deaf.stdout.readline() == "up\n"
        deaf.terminate()
        said, _ = deaf.communicate(timeout=TIME_LIMIT_SECONDS)
    assert deaf.returncode == 0 and said.endswith("asked by SIGTERM\n")


@pytest.mark.parametrize(
    ("code", "status"), [("exit 3", 3), ("kill -KILL $$", 128 + signal.SIGKILL)]
)
def test_the_status_is_that_of_the_launcher(code: str, status: int) -> None:
    with start("bash", "-c", code) as deaf:
        deaf.communicate(timeout=TIME_LIMIT_SECONDS)
    assert deaf.returncode == status


def test_a_terminal_that_is_closed_ends_the_launcher() -> None:
    with start("bash", "-c", "echo up; sleep 3600") as deaf:
        assert deaf.stdout and deaf.stdout.readline() == "up\n"
        deaf.send_signal(signal.SIGHUP)
        deaf.communicate(timeout=TIME_LIMIT_SECONDS)
    assert deaf.returncode == 128 + signal.SIGHUP


def test_a_terminal_that_is_closed_while_the_launcher_starts_ends_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANG_UP_AT_ONCE],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,  # held until the launcher has ended too
        timeout=TIME_LIMIT_SECONDS,
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.returncode == 128 + signal.SIGHUP


def test_a_launcher_that_is_missing_is_named() -> None:
    with start("no-such-launcher") as deaf:
        _, said = deaf.communicate(timeout=TIME_LIMIT_SECONDS)
    assert deaf.returncode == 127
    assert said == "error: no-such-launcher: No such file or directory\n"
