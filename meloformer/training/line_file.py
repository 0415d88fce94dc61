"""A file of lines that outlives a full disk: what is refused is kept, and goes first next time."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path


class LineFile:
    """Adds lines to the end of a file; it holds whole lines only, whatever the disk takes.

    Args:
        path: made where missing; half a line at its end, of a killed process, goes.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Unbuffered: a buffer loses lines when the disk refuses them, or writes some twice.
        self._file = path.open("ab", buffering=0)
        self._waiting: list[str] = []
        self._end = self._whole_bytes(lambda line: True)
        self._file.truncate(self._end)

    def add(self, line: str) -> None:
        """Write a line, after those that are waiting.

        Raises:
            OSError: the disk refuses it; it waits for the next call.
        """
        self._waiting.append(line)
        self._write()

    @property
    def num_waiting(self) -> int:
        """Lines that the disk has refused so far."""
        return len(self._waiting)

    def keep_while(self, is_kept: Callable[[str], bool]) -> list[str]:
        """Keep the lines up to the first for which this does not hold; needs no room.

        Returns:
            Those that went, written or waiting.

        Raises:
            OSError: the file cannot be read or cut.
        """
        end = self._whole_bytes(is_kept)
        with self._path.open("rb") as file:
            file.seek(end)
            gone = file.read(self._end - end).decode(errors="replace").split("\n")[:-1]
        kept = [] if gone else list(takewhile(is_kept, self._waiting))
        gone += self._waiting[len(kept) :]
        self._file.truncate(end)
        self._end, self._waiting = end, kept
        return gone

    def close(self) -> int:
        """Try once more to write what waits, and close.

        Returns:
            Lines that the disk has refused once more; they are lost.
        """
        with suppress(OSError):
            self._write()
        with suppress(OSError):
            self._file.close()
        return len(self._waiting)

    def _whole_bytes(self, is_kept: Callable[[str], bool]) -> int:
        """Length of the whole lines up to the first for which this does not hold."""
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not is_kept(line[:-1].decode(errors="replace")):
                    break
                end += len(line)
        return end

    def _write(self) -> None:
        while self._waiting:
            rest = f"{self._waiting[0]}\n".encode()
            size = len(rest)
            try:
                # A disk that is about to be full takes a part and refuses the rest.
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), self._end)
                raise
            self._end += size
            del self._waiting[0]
