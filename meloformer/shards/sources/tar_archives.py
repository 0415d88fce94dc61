"""MIDI in tar archives, read in place and in order; nothing inside one leads anywhere."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from meloformer.errors import MidiError
from meloformer.midi.limits import MAX_FILE_BYTES
from meloformer.shards.sources import expansion
from meloformer.shards.sources.files import (
    CarriedFile,
    MidiFile,
    RefusedFile,
    is_unsafe,
    printable,
    tidy_name,
    too_big,
    unreadable,
)
from meloformer.shards.sources.kinds import ARCHIVES, Kind, kind_of
from meloformer.shards.sources.leaves import Findings, damaged, unopened
from meloformer.shards.sources.licences import READ_BYTES

# What the library and the decompressors below it raise for damaged input.
_DAMAGED = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    LookupError,
    RecursionError,
)
_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_READ_BYTES = 64 * 1024
_PACKED_READ_BYTES = 16 * 1024
_STEP_BYTES = 2**20
_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
# Names and attributes: the library takes them into memory whole.
_MAX_EXTENSION_BYTES = 2**20


@dataclass(frozen=True)
class TarMember:
    """A MIDI file of a tar that is not compressed, by its place."""

    name: str
    archive: str
    offset: int
    num_bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.num_bytes)
        except OSError as error:
            raise unreadable(error, was_seen=True) from error
        if len(data) != self.num_bytes:
            raise MidiError("unreadable", f"{len(data)} bytes of {self.num_bytes} are there")
        return data


@dataclass(frozen=True)
class TarArchive:
    """A tar on disk, compressed or not."""

    name: str
    path: str
    holds_midi: bool = True

    def survey(self, findings: Findings) -> int | None:
        """None: a tar has no directory, so what it holds is known when it was read."""
        return None

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        try:
            with _opened(self.path) as (tar, packed):
                while (member := tar.next()) is not None:
                    yield from self._files_of(tar, member, packed, findings)
                    vars(tar)["members"].clear()  # the library would keep them all
                _check_end(tar)
        except _DAMAGED as error:
            raise damaged(self.path, error) from error

    def _files_of(
        self,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        packed: "_Counted | None",
        findings: Findings,
    ) -> Iterator[MidiFile]:
        if member.isdir():
            return
        # An unsafe name is reported as it stands.
        inside = printable(member.name)
        inside = inside if is_unsafe(inside) else tidy_name(inside)
        name = f"{self.name}/{inside}" if self.name else inside
        kind = kind_of(inside)
        if kind is Kind.MIDI:
            refused = _refusal(member, name)
            if refused is not None:
                yield refused
            elif packed is None:
                yield TarMember(name, self.path, member.offset_data, member.size)
            else:
                yield _carried(tar, member, packed, name)
        elif kind in ARCHIVES:
            yield unopened(name)
        else:
            findings.add_other(inside)
            if kind is Kind.LICENCE and member.isreg() and not member.issparse():
                findings.licences.add(name, _content(tar, member).read(READ_BYTES))


def _refusal(member: tarfile.TarInfo, name: str) -> RefusedFile | None:
    if is_unsafe(member.name):
        return RefusedFile(name, "unsafe_path", f"{member.name!r} leads out of its archive")
    if member.issym() or member.islnk():
        return RefusedFile(name, "link", "links in archives are not followed")
    if not member.isreg():
        return RefusedFile(name, "not_a_file", "a pipe or device")
    if member.size > MAX_FILE_BYTES:
        return RefusedFile(name, too_big().reason, too_big().detail)
    if member.issparse():
        return RefusedFile(name, expansion.REASON, "a file with holes; unpack the tar")
    return None


def _carried(
    tar: tarfile.TarFile, member: tarfile.TarInfo, packed: "_Counted", name: str
) -> MidiFile:
    """A member of a compressed tar, read now; one that swells is left as soon as it does."""
    before = packed.num_bytes
    file = _content(tar, member)
    data = bytearray()
    while step := file.read(_STEP_BYTES):
        data += step
        # What was read ahead before the member began may be its own.
        own_bytes = packed.num_bytes - before + _PACKED_READ_BYTES
        if expansion.swells(len(data), own_bytes):
            return RefusedFile(name, expansion.REASON, expansion.detail(len(data), own_bytes))
    return CarriedFile(name, bytes(data))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "a regular member has data"
    return file


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse what stands behind the end marker, as when two tars were put into one file."""
    file = tar.fileobj
    assert file is not None, "it is open"
    while block := file.read(_STEP_BYTES):
        if any(block):
            raise tarfile.ReadError("it goes on behind its end marker; unpack it with tar -i")


@contextmanager
def _opened(path: str) -> "Iterator[tuple[tarfile.TarFile, _Counted | None]]":
    """A tar and, where it is compressed, the count of the bytes it is read from."""
    with open(path, "rb") as file:
        head = file.read(max(len(magic) for magic in _OPENERS))
        file.seek(0)
        opener = next((found for magic, found in _OPENERS.items() if head.startswith(magic)), None)
        if opener is None:
            with tarfile.open(
                fileobj=file, mode="r:", errors="backslashreplace", tarinfo=_StrictTarInfo
            ) as tar:
                yield tar, None
            return
        packed = _Counted(file)
        with (
            opener(packed) as unpacked,
            tarfile.open(
                fileobj=_Bounded(unpacked, packed, path),
                mode="r|",
                bufsize=_READ_BYTES,
                errors="backslashreplace",
                tarinfo=_StrictTarInfo,
            ) as tar,
        ):
            yield tar, packed


class _Counted(io.RawIOBase):
    """Counts what a decompressor has taken, in steps small enough to tell whose bytes they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self.num_bytes = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, _PACKED_READ_BYTES) if size > 0 else _PACKED_READ_BYTES)
        self.num_bytes += len(data)
        return data


class _Bounded(io.RawIOBase):
    """Counts what a decompressor gives, and stops one that gives too much for what it took."""

    def __init__(self, unpacked: IO[bytes], packed: _Counted, path: str) -> None:
        self._unpacked = unpacked
        self._packed = packed
        self._path = path
        self._num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._unpacked.read(min(size, _READ_BYTES) if size > 0 else _READ_BYTES)
        self._num_bytes += len(data)
        expansion.check_archive(self._path, self._num_bytes, self._packed.num_bytes)
        return data


class _StrictTarInfo(tarfile.TarInfo):
    """Headers of an archive that has to end with its own end marker.

    The library takes a header that is cut short or spoiled, after the first, for the end, and
    takes names into memory however long they say they are.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _EXTENSIONS and member.size > _MAX_EXTENSION_BYTES):
            raise tarfile.ReadError(f"a header of type {member.type!r} and {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"it breaks off: {error}") from error
