"""Walks over folders and lists: the same order each time, in bounded memory."""

import heapq
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import IO

from meloformer.errors import ShardError
from meloformer.shards.sources.datasets import (
    MARKERS,
    NamedFiles,
    named_files,
    tables_that_count,
)
from meloformer.shards.sources.files import printable
from meloformer.shards.sources.kinds import ALLOWED, ARCHIVES, Kind, is_table, kind_of
from meloformer.shards.sources.leaves import Bystander, Leaf, LooseFile, Refusal, unopened
from meloformer.shards.sources.tables import Table
from meloformer.shards.sources.tar_archives import TarArchive
from meloformer.shards.sources.zips import ZipArchive

# Entries of a folder that are sorted in memory; beyond, sorted runs go through a file.
_ENTRIES_PER_RUN = 100_000
_RUN_READ_BYTES = 64 * 1024
# Neither can stand in a name; the first sorts before all that can.
_TYPE_MARK, _END_MARK = "\0", "/"
_FOLDER, _FILE, _LINKED_FOLDER, _GONE = "d", "f", "l", "g"

_MAX_LINE_CHARACTERS = 64 * 1024
_LINES_SHOWN = 3
# Kinds that make a text a list: a README, too, may have a line that names a LICENSE.
_LISTED = ARCHIVES | {Kind.MIDI}


def leaf_of(path: str, name: str) -> Leaf:
    """A file on disk as its name tells it."""
    name = printable(name)
    match kind_of(path):
        case Kind.MIDI:
            return LooseFile(name, path)
        case Kind.ZIP:
            return ZipArchive(name, path)
        case Kind.TAR:
            return TarArchive(name, path)
        case Kind.TABLE:
            return Table(name, path)
        case Kind.CLOSED:
            refused = unopened(name)
            return Refusal(name, path, refused.reason, refused.detail)
        case _:
            return Bystander(name, path)


@dataclass(frozen=True)
class _Level:
    """A folder in the middle of a walk."""

    path: str
    prefix: str
    entries: Iterator[str]
    tables: frozenset[str]
    named: tuple[NamedFiles, ...]


def walk_folder(folder: str, prefix: str) -> Iterator[Leaf]:
    """Files below a folder, each folder sorted by name.

    Links to folders are not followed but counted. Files that a table names come with its rows.

    Args:
        folder: to be searched through.
        prefix: put before the names.
    """
    waiting: list[_Level] = []
    opened: list[tuple[str, str, tuple[NamedFiles, ...]]] = [(folder, prefix, ())]
    while opened or waiting:
        if opened:
            path, prefix, named = opened.pop()
            try:
                waiting.append(_level(path, prefix, named))
            except OSError as error:
                yield Refusal(
                    printable(prefix) or ".", path, "unreadable", error.strerror or str(error)
                )
            continue
        level = waiting[-1]
        record = next(level.entries, None)
        if record is None:
            waiting.pop()
            continue
        name, _, entry_type = record.partition(_TYPE_MARK)
        path, full_name = f"{level.path}/{name}", level.prefix + name
        if entry_type == _FOLDER:
            opened.append((path, f"{full_name}/", level.named))
        elif entry_type == _LINKED_FOLDER:
            detail = "a link to a folder is not followed; name the folder itself"
            yield Refusal(printable(full_name), path, "link", detail)
        elif entry_type == _GONE and kind_of(name) in ARCHIVES:
            detail = "a link that leads nowhere, a pipe or a device"
            yield Refusal(printable(full_name), path, "not_a_file", detail)
        elif is_table(name) and name not in level.tables:
            yield Bystander(printable(full_name), path)
        elif not any(full_name in names for names in level.named):
            leaf = leaf_of(path, full_name)
            if entry_type == _GONE and isinstance(leaf, LooseFile):
                leaf = replace(leaf, was_seen=False)
            yield leaf


def _level(path: str, prefix: str, named: tuple[NamedFiles, ...]) -> _Level:
    listing = sorted_listing(path)
    tables = tables_that_count(path, listing.tables)
    own = named_files(path, prefix, sorted(tables), listing.markers)
    return _Level(path, prefix, listing.entries, tables, (*named, own) if len(own) else named)


@dataclass(frozen=True)
class _Listing:
    entries: Iterator[str]
    tables: list[str]
    markers: list[str]


def sorted_listing(folder: str) -> _Listing:
    """Entries of a folder in the order of their names, however many there are."""
    tables: list[str] = []
    markers: list[str] = []
    with os.scandir(folder) as scanned:
        records = (_record(entry, tables, markers) for entry in scanned)
        run = sorted(islice(records, _ENTRIES_PER_RUN))
        if len(run) < _ENTRIES_PER_RUN:
            return _Listing(iter(run), tables, markers)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the runs are read
        bounds = [0]
        while run:
            file.write(os.fsencode("".join(record + _END_MARK for record in run)))
            bounds.append(file.tell())
            run = sorted(islice(records, _ENTRIES_PER_RUN))
        file.flush()
    runs = [_read_run(file, start, end) for start, end in pairwise(bounds)]
    return _Listing(heapq.merge(*runs), tables, markers)


def _record(entry: "os.DirEntry[str]", tables: list[str], markers: list[str]) -> str:
    if entry.name in MARKERS:
        markers.append(entry.name)
    if entry.is_dir(follow_symlinks=False):
        kind = _FOLDER
    elif entry.is_file():
        kind = _FILE
        if is_table(entry.name):
            tables.append(entry.name)
    else:
        kind = _LINKED_FOLDER if entry.is_dir() else _GONE
    return f"{entry.name}{_TYPE_MARK}{kind}"


def _read_run(file: IO[bytes], start: int, end: int) -> Iterator[str]:
    rest = b""
    mark = _END_MARK.encode()
    while start < end:
        block = os.pread(file.fileno(), min(_RUN_READ_BYTES, end - start), start)
        start += len(block)
        *records, rest = (rest + block).split(mark)
        yield from map(os.fsdecode, records)


def check_list(path: str) -> None:
    """Refuse a text that is no list: none of its lines names what is there.

    Raises:
        ShardError: it is none, or not even text.
    """
    root = os.path.dirname(path)
    shown: list[str] = []
    num_lines = 0
    for line in _lines(path):
        num_lines += 1
        if _may_hold_midi(os.path.join(root, line)):
            return
        if len(shown) < _LINES_SHOWN:
            shown.append(line[:60])
    raise ShardError(
        f"--midi {path}: neither a folder, an archive, a dataset nor a list of paths: none of its "
        f"{num_lines} lines names a MIDI file, an archive or a folder of such, relative to "
        f"{root or '.'}; it begins {shown}"
    )


def _may_hold_midi(path: str) -> bool:
    if os.path.isdir(path):  # a README may name folders too
        return any(leaf.holds_midi for leaf in walk_folder(path, ""))
    return kind_of(path) in _LISTED and os.path.exists(path)


def walk_list(path: str) -> Iterator[Leaf]:
    """What the lines of a list name, in their order; each line ends as something."""
    root = os.path.dirname(path)
    for line in _lines(path):
        found = os.path.join(root, line)
        if os.path.isdir(found):
            found_any = False
            for leaf in walk_folder(found, f"{line.rstrip('/')}/"):
                found_any |= leaf.holds_midi
                yield leaf
            if not found_any:
                yield Refusal(line, found, "no_midi", "a folder without MIDI")
        elif kind_of(line) in ARCHIVES and not os.path.exists(found):
            yield Refusal(line, found, "missing_file", "the list names it; it is not there")
        elif kind_of(line) in ARCHIVES:
            yield leaf_of(found, line)
        else:
            # Named on purpose: a reader says what is wrong with it.
            yield LooseFile(line, found, was_seen=False)


def _lines(path: str) -> Iterator[str]:
    """Lines that name something: a `#` begins a comment where no file is called so."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(_MAX_LINE_CHARACTERS + 1):
                if len(line) > _MAX_LINE_CHARACTERS:
                    raise ValueError(f"a line of more than {_MAX_LINE_CHARACTERS} characters")
                stripped = line.strip()
                is_comment = stripped.startswith("#") and not os.path.lexists(
                    os.path.join(os.path.dirname(path), stripped)
                )
                if stripped and not is_comment:
                    yield stripped
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ShardError(
            f"--midi {path}: neither a folder, an archive, a dataset nor a list of paths in UTF-8 "
            f"({error}); allowed are {ALLOWED}"
        ) from error
