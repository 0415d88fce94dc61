"""A launcher that hears no signal that asks a run to stop: its ranks do.

    python -m meloformer.training.deaf_launcher torchrun --nproc_per_node 8 launch/train.py ...

Told to stop, torchrun and the deepspeed launcher pass it on, wait for half a minute, kill what is
left, and end in a traceback with a status that says failure, whatever the ranks have saved. Here
the launcher and what it starts have these signals blocked, which programs inherit. Ranks take them
all the same (`interrupts.listen`), so a signal to every process of a run stops it as one to a
single rank does, and the launcher ends as at the end of the run. What this process gets it hands to
the ranks, also to those that start later.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

from meloformer.interrupts import EXIT_INTERRUPTED, STOP_NAMES, block_stop_signals

_POLL_SECONDS = 0.2


def run_deaf(command: Sequence[str]) -> int:
    """Run a launcher to its end, and hand signals on to what it has started.

    Args:
        command: with the launcher's name first.

    Returns:
        Its status, as a shell says it; after Ctrl-C the one that ends a list of commands.
    """
    block_stop_signals()
    launcher: subprocess.Popen | None = None
    early: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if launcher is None:
            early.append(number)  # it may be running already: who left now would leave it behind
        else:
            os.killpg(launcher.pid, number)

    # What ends a launcher in other ways, as a terminal that is closed, still does.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        # A session of its own: a signal to the whole group of this process comes here alone.
        launcher = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"error: {command[0]}: {error.strerror}\n")
        return 127
    for missed in early:
        os.killpg(launcher.pid, missed)
    hearer = _Hearer(launcher.pid)
    threading.Thread(target=hearer.hear, daemon=True).start()
    threading.Thread(target=hearer.tell_late, daemon=True).start()
    status = launcher.wait()
    if hearer.said and hearer.said[0] == signal.SIGINT and not status:
        return EXIT_INTERRUPTED
    return status if status >= 0 else 128 - status


class _Hearer:
    """Takes signals, and tells each process of a run of each signal once."""

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher
        self._told: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self.said: list[signal.Signals] = []

    def hear(self) -> None:
        while True:
            self.said.append(signal.Signals(signal.sigwait(STOP_NAMES)))
            self._tell()

    def tell_late(self) -> None:
        """What has been started since a signal came hears of it too."""
        while True:
            time.sleep(_POLL_SECONDS)
            if self.said:
                self._tell()

    def _tell(self) -> None:
        with self._lock, suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._launcher).children(recursive=True):
                for place, number in enumerate(self.said):
                    if (process.pid, place) not in self._told:
                        self._told.add((process.pid, place))
                        with suppress(ProcessLookupError):
                            os.kill(process.pid, number)


if __name__ == "__main__":
    sys.exit(run_deaf(sys.argv[1:]))
