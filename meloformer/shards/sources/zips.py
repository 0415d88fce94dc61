"""MIDI in .zip archives, read in place: a member is found by its offset, not by the directory.

The library's own reader holds an object for every member, in each worker again.
"""

import bz2
import lzma
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from meloformer.errors import MidiError
from meloformer.midi.limits import MAX_FILE_BYTES
from meloformer.shards.sources import expansion
from meloformer.shards.sources.files import (
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

_STORED, _DEFLATED, _BZIP2, _LZMA = 0, 8, 12, 14
_ENCRYPTED, _UTF8 = 0x1, 0x800
_END = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\5\6"
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_MAX_COMMENT = 0xFFFF
# What a packed member may be longer than its content: methods that gain nothing add a little.
_PACKED_SLACK_BYTES = 64 * 1024


@dataclass(frozen=True)
class ZipMember:
    """A MIDI file of a .zip, with all that reading it takes.

    Args:
        name: path inside the source.
        archive: the .zip.
        offset: of its local header.
        method: of compression.
        packed_bytes: in the archive.
        unpacked_bytes: as the directory promises.
        crc32: of the content.
        facts: none.
    """

    name: str
    archive: str
    offset: int
    method: int
    packed_bytes: int
    unpacked_bytes: int
    crc32: int
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        if self.unpacked_bytes > MAX_FILE_BYTES:
            raise too_big()
        try:
            return self._content()
        except OSError as error:
            raise unreadable(error, was_seen=True) from error
        except (zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error) as error:
            raise MidiError("unreadable", f"in {os.path.basename(self.archive)}: {error}") from None

    def _content(self) -> bytes:
        if self.packed_bytes > self.unpacked_bytes + _PACKED_SLACK_BYTES:
            raise ValueError(f"{self.packed_bytes} bytes packed, {self.unpacked_bytes} unpacked")
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            magic, *_, name_bytes, extra_bytes = _LOCAL.unpack(file.read(_LOCAL.size))
            if magic != b"PK\3\4":
                raise ValueError("no header where the directory says")
            file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
            packed = file.read(self.packed_bytes)
        # One byte more than promised shows that the promise is broken.
        data = _unpack(packed, self.method, self.unpacked_bytes + 1)
        if len(data) != self.unpacked_bytes or zlib.crc32(data) != self.crc32:
            raise ValueError("bad CRC-32 or length")
        return data


@dataclass(frozen=True)
class ZipArchive:
    """A .zip on disk."""

    name: str
    path: str
    holds_midi: bool = True

    def survey(self, findings: Findings) -> int:
        return sum(1 for _ in self.files(findings))

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        self._check_expansion()
        for entry in self._entries():
            if entry.name.endswith("/"):
                continue
            # An unsafe name is reported as it stands.
            name = entry.name if is_unsafe(entry.name) else tidy_name(entry.name)
            full_name = f"{self.name}/{name}" if self.name else name
            kind = kind_of(name)
            if kind is Kind.MIDI:
                yield self._file(entry, full_name)
            elif kind in ARCHIVES:
                yield unopened(full_name)
            else:
                findings.add_other(name)
                if kind is Kind.LICENCE:
                    self._add_licence(entry, full_name, findings)

    def _entries(self) -> "Iterator[_Entry]":
        try:
            with open(self.path, "rb") as file:
                yield from _directory(file)
        except (OSError, ValueError, struct.error) as error:
            raise damaged(self.path, error) from error

    def _check_expansion(self) -> None:
        """Refuse a bomb by the directory alone.

        Members that share bytes add up to more packed bytes than there are; where none do, the
        whole unpacks to no more than its members may.
        """
        packed = unpacked = 0
        for entry in self._entries():
            if kind_of(entry.name) is Kind.MIDI and not expansion.swells(
                entry.unpacked_bytes, entry.packed_bytes
            ):
                packed += entry.packed_bytes
                unpacked += entry.unpacked_bytes
        size = os.path.getsize(self.path)
        expansion.check_archive(self.path, unpacked, size)
        if packed > size:
            raise damaged(self.path, ValueError(f"members of {packed} bytes in {size} overlap"))

    def _file(self, entry: "_Entry", name: str) -> MidiFile:
        if is_unsafe(entry.name):
            return RefusedFile(name, "unsafe_path", f"{entry.name!r} leads out of its archive")
        if entry.is_link:
            return RefusedFile(name, "link", "links in archives are not followed")
        if entry.is_encrypted:
            return RefusedFile(name, "encrypted", "the .zip wants a password; unpack it")
        if expansion.swells(entry.unpacked_bytes, entry.packed_bytes):
            found = expansion.detail(entry.unpacked_bytes, entry.packed_bytes)
            return RefusedFile(name, expansion.REASON, found)
        return self._member(entry, name)

    def _member(self, entry: "_Entry", name: str) -> ZipMember:
        return ZipMember(
            name,
            self.path,
            entry.offset,
            entry.method,
            entry.packed_bytes,
            entry.unpacked_bytes,
            entry.crc32,
        )

    def _add_licence(self, entry: "_Entry", name: str, findings: Findings) -> None:
        if entry.is_encrypted or entry.is_link or entry.unpacked_bytes > READ_BYTES:
            return
        try:
            findings.licences.add(name, self._member(entry, name).read())
        except MidiError:  # a damaged licence is no reason to refuse the music
            return


@dataclass(frozen=True)
class _Entry:
    name: str
    offset: int
    method: int
    packed_bytes: int
    unpacked_bytes: int
    crc32: int
    is_encrypted: bool
    is_link: bool


def _directory(file: IO[bytes]) -> Iterator[_Entry]:
    """Entries of the central directory, one after the other.

    Raises:
        ValueError, struct.error: there is none, or it is damaged.

    Source: APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3.
    """
    num_entries, size, offset, shift = _find_directory(file)
    file.seek(offset + shift)
    num_found = 0
    # Up to its end, not by their number: old tools count with 16 bits and overflow.
    while size > 0:
        (magic, made_by, _, flags, method, _, _, crc32, packed, unpacked, *rest) = _CENTRAL.unpack(
            file.read(_CENTRAL.size)
        )
        name_bytes, extra_bytes, comment_bytes, _, _, external, local = rest
        if magic != b"PK\1\2":
            raise ValueError("its directory is spoiled")
        size -= _CENTRAL.size + name_bytes + extra_bytes + comment_bytes
        num_found += 1
        raw_name = file.read(name_bytes)
        extra = file.read(extra_bytes)
        file.seek(comment_bytes, os.SEEK_CUR)
        if _FULL32 in (packed, unpacked, local):
            unpacked, packed, local = _wide(extra, unpacked, packed, local)
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437", "backslashreplace")
        is_unix = made_by >> 8 == 3
        yield _Entry(
            printable(name),
            local + shift,
            method,
            packed,
            unpacked,
            crc32,
            is_encrypted=bool(flags & _ENCRYPTED),
            is_link=is_unix and stat.S_ISLNK(external >> 16),
        )
    if size != 0 or (num_found - num_entries) % (_FULL16 + 1) != 0:
        raise ValueError("its directory does not end where it says")


def _find_directory(file: IO[bytes]) -> tuple[int, int, int, int]:
    """(entries, bytes, offset, bytes that were put before the archive) of the directory."""
    file_bytes = file.seek(0, os.SEEK_END)
    tail_bytes = min(file_bytes, _END.size + _MAX_COMMENT)
    file.seek(file_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    position = _end_record(tail)
    _, disk, _, _, num_entries, size, offset, _ = _END.unpack_from(tail, position)
    end = file_bytes - tail_bytes + position
    if end >= _LOCATOR64.size and (_FULL16 in (disk, num_entries) or _FULL32 in (size, offset)):
        file.seek(end - _LOCATOR64.size)
        if file.read(_LOCATOR64.size).startswith(b"PK\6\7"):
            end -= _LOCATOR64.size + _END64.size
            file.seek(max(end, 0))
            magic, _, _, _, disk, _, _, num_entries, size, offset = _END64.unpack(
                file.read(_END64.size)
            )
            if magic != b"PK\6\6":
                raise ValueError("its 64-bit end record is spoiled")
    shift = end - size - offset
    if disk != 0:
        raise ValueError("it is one part of several")
    if shift < 0:
        raise ValueError("its directory lies outside")
    return num_entries, size, offset, shift


def _end_record(tail: bytes) -> int:
    """Where the end record stands: the one whose comment ends with the file, else the last."""
    positions = []
    position = len(tail) - _END.size + len(_END_MAGIC)
    while position > 0 and (position := tail.rfind(_END_MAGIC, 0, position)) >= 0:
        *_, comment_bytes = _END.unpack_from(tail, position)
        if position + _END.size + comment_bytes == len(tail):
            return position
        positions.append(position)
        position += len(_END_MAGIC) - 1
    if not positions:
        raise ValueError("no directory at its end")
    return positions[0]


def _wide(extra: bytes, unpacked: int, packed: int, local: int) -> tuple[int, int, int]:
    """Replace what does not fit 32 bits by the 64-bit field."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            field_bytes = extra[position + 4 : position + 4 + length]
            values = iter(struct.unpack(f"<{len(field_bytes) // 8}Q", field_bytes[: length & ~7]))
            try:
                return (
                    next(values) if unpacked == _FULL32 else unpacked,
                    next(values) if packed == _FULL32 else packed,
                    next(values) if local == _FULL32 else local,
                )
            except StopIteration:
                raise ValueError("a 64-bit field is cut short") from None
        position += 4 + length
    return unpacked, packed, local


def _unpack(packed: bytes, method: int, most: int) -> bytes:
    if method == _STORED:
        return packed
    if method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
    if method == _BZIP2:
        return bz2.BZ2Decompressor().decompress(packed, most)
    if method == _LZMA:
        return _lzma(packed, most)
    raise ValueError(f"compression method {method} is not read")


def _lzma(packed: bytes, most: int) -> bytes:
    _, properties_bytes, properties, dictionary = struct.unpack_from("<2HBL", packed)
    rest, lc = divmod(properties, 9)
    pb, lp = divmod(rest, 5)
    # No content needs a dictionary longer than itself.
    size = min(dictionary, max(most, 4096))
    filters = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": size}]
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    return decompressor.decompress(packed[4 + properties_bytes :], most)
