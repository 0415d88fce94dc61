"""Ctrl-C and SIGTERM end a recipe in one line, also while it is still importing.

Imports nothing that takes time: a recipe calls `end_at_signals` before all its other imports.
"""

import os
import signal
import sys
from types import FrameType

# What a shell says of a process that such a signal has ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


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
