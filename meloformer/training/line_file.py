"""A file of lines that outlives a full disk: what is refused is kept, and goes first next time."""

from contextlib import suppress
from pathlib import Path


class LineFile:
    """Adds lines to the end of a file.

    Args:
        path: made where missing.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer loses lines when the disk refuses them, or writes some twice.
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def add(self, line: str) -> None:
        """Write a line, after those that are waiting.

        Raises:
            OSError: the disk refuses it; it waits for the next call.
        """
        self._waiting += line.encode() + b"\n"
        self._write()

    def close(self) -> None:
        """Try once more to write what waits, and close; what the disk refuses now is lost."""
        with suppress(OSError):
            self._write()
        with suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        # A disk that is about to be full takes a part and refuses the rest.
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]
