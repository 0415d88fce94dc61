"""A stranger's MIDI file is read in a process of its own, under limits, which may die of it.

The process is started before it is needed, reads one file from its stdin, answers with plain
arrays, and ends. `python -m meloformer.demo.reading` is that process.
"""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from meloformer.demo.border import PageError
from meloformer.errors import MidiError
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.shards.guard import FileLimits, Guard, TimeIsUp

# What the process adds to the time of the file, itself included; a busy machine starts it slowly.
_START_SECONDS = 60.0
_MUSIC, _REFUSAL = b"+", b"-"
# Each may take all that it is allowed to.
_AT_ONCE = 2


class MidiReader:
    """Reads files of strangers, one after the other.

    Args:
        limits: of each.
    """

    def __init__(self, limits: FileLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._few = threading.Semaphore(_AT_ONCE)
        self._spare = self._start()

    def read(self, data: bytes) -> QuantisedPiece:
        """The music of a file, on the grid.

        Raises:
            PageError: the file cannot be used, took too much, or killed its reader.
        """
        with self._few:
            answer = self._ask(data)
        if answer.startswith(_MUSIC):
            with np.load(io.BytesIO(answer[1:]), allow_pickle=False) as columns:
                return QuantisedPiece(**{name: columns[name] for name in columns.files})
        reason, _, detail = answer[1:].decode(errors="replace").partition("\n")
        reason = reason or "crash"
        raise PageError(
            "bad_midi",
            f"the MIDI file: {reason}{': ' if detail else ''}{detail}; allowed: a MIDI file with "
            "notes",
            reason=reason,
            detail=detail,
        )

    def _ask(self, data: bytes) -> bytes:
        """What a process says of a file; nothing where it died."""
        with self._lock:
            process, self._spare = self._spare, self._start()
        with process:
            try:
                answer, _ = process.communicate(
                    data, timeout=_START_SECONDS + 2 * self._limits.file_seconds
                )
            except subprocess.TimeoutExpired:
                answer = b""
            finally:
                process.kill()
        return answer

    def close(self) -> None:
        """End the process that waits for the next file."""
        self._spare.kill()
        self._spare.communicate()

    def _start(self) -> "subprocess.Popen[bytes]":
        limits = (str(self._limits.file_seconds), str(self._limits.file_megabytes))
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The package is found where this process has found it; its cores are the model's.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )


def _answer(data: bytes, limits: FileLimits) -> bytes:
    """What the process says of a file."""
    try:
        with Guard(limits) as guard, guard.limited():
            piece = quantise(read_midi(data))
    except MidiError as error:
        return _refusal(error.reason, error.detail)
    except TimeIsUp:
        return _refusal("timeout", f"reading took over {limits.file_seconds:g} seconds")
    except MemoryError:
        return _refusal("too_much_memory", f"reading took over {limits.file_megabytes} megabytes")
    file = io.BytesIO()
    np.savez(file, **{field.name: getattr(piece, field.name) for field in fields(piece)})
    return _MUSIC + file.getvalue()


def _refusal(reason: str, detail: str) -> bytes:
    return _REFUSAL + f"{reason}\n{detail}".encode()


def _main(arguments: Sequence[str]) -> None:
    seconds, megabytes = arguments
    limits = FileLimits(file_seconds=float(seconds), file_megabytes=int(megabytes))
    # Nothing comes where the server has ended before it had a file.
    if data := sys.stdin.buffer.read():
        sys.stdout.buffer.write(_answer(data, limits))


if __name__ == "__main__":
    _main(sys.argv[1:])
