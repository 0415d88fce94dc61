"""What signals do to a process, also while it is still importing.

Most recipes end at Ctrl-C and SIGTERM, in one line. Training is asked to stop and does so between
two steps: see `listen`. Its data workers leave all of that to their rank.

Imports nothing that takes time: a recipe calls `end_at_signals` or `listen` before all its other
imports.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

# What a shell says of a process that such a signal has ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

# Signals that ask a run to stop, and what a message calls them.
STOP_NAMES = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGINT: "Ctrl-C",
}
# One Ctrl-C may come twice, from the terminal and from a launcher that hands it on.
_SAME_SECONDS = 1.0
_NAMES = {number: STOP_NAMES[number] for number in (signal.SIGINT, signal.SIGTERM)}
# prctl(2): the signal that a process gets when the one that started it ends.
_PR_SET_PDEATHSIG = 1

_asked: signal.Signals | None = None
_has_begun = False
_status: int | None = None


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, to be treated as Ctrl-C is: by nobody but the end of the recipe."""


def end_at_signals() -> None:
    """End the process at once, with one line: an exception would surface in whatever imports."""
    for number in _NAMES:
        signal.signal(number, _end)


def raise_at_signals() -> None:
    """Let signals unwind the recipe; without `end_at_signals` before, they stay as they are."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, _raise)


def end_quietly_at_signals() -> None:
    """Of a process that has said its last line; where the recipe's own handlers stand."""
    if signal.getsignal(signal.SIGTERM) is _raise:
        for number in _NAMES:
            signal.signal(number, _end_quietly)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {_NAMES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


def _end_quietly(number: int, frame: FrameType | None) -> None:
    sys.stdout.flush()
    os._exit(128 + number)


def block_stop_signals() -> None:
    """Let no signal that asks a run to stop reach this thread, nor what it starts from now on.

    Threads and processes inherit it, and a program that is started in place of this one too. Such a
    signal waits then until somebody takes it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_NAMES)


def listen() -> None:
    """From now on note signals that ask for a stop; they interrupt nothing. Call it once.

    A thread takes them, so that they are noted while others compute or wait in a library. What this
    process starts (data workers, compilers) hears none of them: one signal to everything that has
    to do with a run stops the run, and breaks nothing that its last step needs.

    A second Ctrl-C ends the process at once. So does the first signal before `begin_work`, where no
    other rank could be left waiting.
    """
    # As a shell starts what runs in its background: Ctrl-C is for others.
    heard = {n for n in STOP_NAMES if signal.getsignal(n) != signal.SIG_IGN}
    block_stop_signals()
    threading.Thread(target=_hear, args=(heard,), name="signals", daemon=True).start()
    # Registered before all others, and so called after them.
    atexit.register(_end_without_teardown)


def ends_with(status: int) -> None:
    """Say what status this process is about to end with; a listener then ends faster."""
    global _status
    _status = status


def _end_without_teardown() -> None:
    """Spare a process that has failed, or whose status is known, the teardown of Python.

    It takes seconds with the libraries of training, half a minute on a busy machine, and then a
    launcher that was told to stop, or has lost another rank, kills this one.
    """
    status = 1 if hasattr(sys, "last_value") else _status
    if status is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(status)


def begin_work() -> None:
    """From now on there is work that a signal must not cut short."""
    global _has_begun
    _has_begun = True


def asked_to_stop() -> signal.Signals | None:
    """The first signal that asked this process to stop; None where none has come."""
    return _asked


def ask_to_stop(number: signal.Signals) -> None:
    """As if that signal had come; another rank has got it."""
    global _asked
    _asked = _asked or number


def _hear(heard: set[signal.Signals]) -> None:
    interrupted_at: float | None = None
    while True:
        number = signal.Signals(signal.sigwait(heard))
        now = time.monotonic()
        is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if not _has_begun and is_alone:
            said = f"stopped by {STOP_NAMES[number]} before the first step, nothing to save\n"
            os.write(1, said.encode())
            os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else 0)
        ask_to_stop(number)
        if number != signal.SIGINT:
            continue
        if interrupted_at is None:
            interrupted_at = now
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"Ctrl-C: this step is finished and saved; again ends at once\n")
        elif now - interrupted_at > _SAME_SECONDS:
            os._exit(EXIT_INTERRUPTED)


def leave_signals_to_parent() -> None:
    """Of a data worker: heed no signal that asks for a stop, and end with the process it works for.

    SIGTERM ends it if it comes from there, and only then: so multiprocessing ends workers.
    """
    block_stop_signals()
    end_with_parent()
    if sys.platform == "linux":
        threading.Thread(target=_end_when_parent_says, daemon=True).start()
    else:
        # No word there on who has sent a signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_when_parent_says() -> None:
    parent = multiprocessing.parent_process()
    senders = {os.getppid(), *([parent.pid] if parent else [])}
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in senders:
        pass
    os._exit(0)


def end_with_parent() -> None:
    """SIGKILL this process when the one that started it ends, in whatever way; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
