"""One file of the input, small enough to be sent to a worker, which reads it there."""

import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from meloformer.errors import MidiError
from meloformer.midi.default_corpus import score_to_midi
from meloformer.midi.limits import MAX_FILE_BYTES

_DRIVE = re.compile(r"[A-Za-z]:")


# What the system says of one file. Anything else is said of the disk or the machine, and holds for
# all files that follow.
_OF_ONE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
    }
)


class InputLostError(OSError):
    """The input went away while it was read: no fault of one file."""


class MidiFile(Protocol):
    """One input file."""

    @property
    def name(self) -> str:
        """Path inside the source, `/` between parts."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else the input says of it, as JSON takes it: a caption, the row of its dataset."""

    def read(self) -> bytes:
        """Bytes of a MIDI file; MidiError where there are none to be had."""


@dataclass(frozen=True)
class FileOnDisk:
    """A MIDI file of a folder, a list, or a dataset that names files.

    Args:
        name: path inside the source.
        path: on the disk.
        facts: what else the input says of it.
        was_seen: a walk has met it, so that it cannot be missing.
    """

    name: str
    path: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    was_seen: bool = False

    def read(self) -> bytes:
        try:
            # Without O_NONBLOCK a pipe of that name would be waited for.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise MidiError("not_a_file", "a folder, pipe or device")
                return read_all(file)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise unreadable(error, was_seen=self.was_seen) from error


@dataclass(frozen=True)
class CarriedFile:
    """A MIDI file that was read with what holds it: a tar or a table is read in order."""

    name: str
    data: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        if len(self.data) > MAX_FILE_BYTES:
            raise too_big()
        return self.data


@dataclass(frozen=True)
class RefusedFile:
    """A file of the input that will not be read, to be counted with its reason."""

    name: str
    reason: str
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        raise MidiError(self.reason, self.detail)


@dataclass(frozen=True)
class Score:
    """A score of the default corpus, turned into MIDI when it is read."""

    name: str
    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        return score_to_midi(self.path)


def carried_bytes(file: MidiFile) -> int:
    """Bytes that travel with a file to its worker.

    >>> carried_bytes(CarriedFile("a.mid", b"MThd")), carried_bytes(FileOnDisk("a.mid", "/a.mid"))
    (4, 0)
    """
    return len(file.data) if isinstance(file, CarriedFile) else 0


def read_all(file: IO[bytes]) -> bytes:
    """The whole of an open file.

    Raises:
        MidiError: it is larger than any MIDI file may be.
    """
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise too_big()
    return data


def too_big() -> MidiError:
    """The rejection of a file that is larger than any MIDI file may be."""
    return MidiError("file_too_big", f"more than {MAX_FILE_BYTES} bytes; allowed {MAX_FILE_BYTES}")


def unreadable(error: Exception, *, was_seen: bool) -> MidiError:
    """The rejection of a file that the system does not give.

    Args:
        error: what it said.
        was_seen: a walk has met the file, or the archive that holds it.

    Raises:
        InputLostError: it is the disk that does not give it, or what was there is gone.
    """
    if isinstance(error, OSError):
        is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        if (is_missing and was_seen) or error.errno not in _OF_ONE_FILE:
            raise InputLostError(error.errno, error.strerror, error.filename) from error
        detail = error.strerror or str(error)
        return MidiError("missing_file" if is_missing else "unreadable", detail)
    return MidiError("unreadable", str(error))


def is_unsafe(name: str) -> bool:
    r"""Tell a name that would lead out of its archive or dataset on some system.

    >>> [is_unsafe(name) for name in ("a/b.mid", "../b.mid", "/b.mid", "a\\..\\b.mid", "C:b.mid")]
    [False, True, True, True, True]
    """
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or "\0" in name or _DRIVE.match(name) is not None


def tidy_name(name: str) -> str:
    """A name without parts that lead nowhere, so that archives agree however they were packed.

    >>> tidy_name("./a//b.mid")
    'a/b.mid'
    """
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def printable(name: str) -> str:
    """A name that is not UTF-8, written with escapes: names go into JSON."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
