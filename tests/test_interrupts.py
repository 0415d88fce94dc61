"""A signal ends a recipe in one line at any moment of its life."""

import subprocess
import sys

import pytest

from tests.training.launching import ROOT, TIME_LIMIT_SECONDS

# A recipe that is stopped while it imports, while it runs, or after its last line.
_RECIPE = """
import os, signal, sys
from dataclasses import dataclass
from meloformer.interrupts import end_at_signals

end_at_signals()
where, number = sys.argv[1], int(sys.argv[2])

def stop(here):
    if here == where:
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 60)

stop("import")
from meloformer.command_line import run_recipe

@dataclass(frozen=True)
class Flags:
    pass

def recipe(flags):
    stop("run")

try:
    run_recipe(recipe, Flags, [], after_a_stop="go on")
finally:
    stop("end")
"""


@pytest.mark.parametrize(
    ("where", "said"), [("import", "stopped by {}"), ("run", "stopped by {}; go on"), ("end", "")]
)
@pytest.mark.parametrize(("number", "name"), [(2, "Ctrl-C"), (15, "SIGTERM")])
def test_a_signal_is_one_line_at_most_and_its_exit_code(
    where: str, said: str, number: int, name: str
) -> None:
    command = [sys.executable, "-c", _RECIPE, where, str(number)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS)
    assert ended.returncode == 128 + number
    assert ended.stderr.strip() == said.format(name)


def test_recipes_that_do_not_ask_for_it_keep_the_signals_of_the_process() -> None:
    code = """
import signal
from meloformer.interrupts import end_quietly_at_signals, raise_at_signals
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
raise_at_signals()
end_quietly_at_signals()
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIME_LIMIT_SECONDS)


def test_what_a_listener_starts_hears_no_signal() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from meloformer.interrupts import listen\n"
        "listen()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1)'])\n"
        "for name in ('TERM', 'USR1', 'INT'):\n"
        "    subprocess.run(['kill', f'-{name}', str(child.pid)], check=True)\n"
        "sys.exit(child.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=TIME_LIMIT_SECONDS)
    assert done.returncode == 0


_FAILS = """
import atexit, sys
from meloformer.interrupts import ends_with, listen
listen()
class Library:
    def __del__(self):
        print("torn down", flush=True)
library = Library()
atexit.register(print, "said at the end")
if sys.argv[1] == "fails":
    raise ValueError("the reason")
if sys.argv[1] == "knows":
    ends_with(3)
    sys.exit(3)
"""


@pytest.mark.parametrize(("how", "status"), [("fails", 1), ("knows", 3), ("ends", 0)])
def test_a_process_that_fails_or_knows_its_status_tears_nothing_down(how: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILS, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )
    assert done.returncode == status
    assert ("ValueError: the reason" in done.stderr) == (how == "fails")
    assert done.stdout.splitlines() == ["said at the end", *(["torn down"] * (how == "ends"))]
