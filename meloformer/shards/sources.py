"""Where MIDI comes from: folders, archives, lists, the default corpus; files in a fixed order.

Archives are read in place. Nothing of them is written to disk, so no name inside one can lead
anywhere, and links inside them are not followed.
"""

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol

from meloformer.errors import MidiError, ShardError
from meloformer.midi.default_corpus import chorale_paths, default_corpus_paths, score_to_midi
from meloformer.midi.limits import MAX_FILE_BYTES

DEFAULT = "default"
CHORALES = "chorales"
MIDI_SUFFIXES = (".mid", ".midi")
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

# What zipfile, tarfile, and the decompressors below them raise for damaged input.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class MidiFile(Protocol):
    """One input file; small, so that it can be sent to a worker, which reads it there."""

    @property
    def name(self) -> str:
        """Path inside the source, `/` between parts."""

    def read(self) -> bytes:
        """Bytes of a MIDI file; MidiError where there are none to be had."""


@dataclass(frozen=True)
class FileOnDisk:
    """A MIDI file of a folder or list."""

    name: str
    path: Path

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                return _read_all(file)
        except OSError as error:
            raise MidiError("unreadable", error.strerror or str(error)) from error


@dataclass(frozen=True)
class ZipMember:
    """A MIDI file of a .zip, by its place in the archive's directory."""

    name: str
    archive: Path
    position: int

    def read(self) -> bytes:
        try:
            archive = _open_zip(self.archive)
            with archive.open(archive.infolist()[self.position]) as file:
                return _read_all(file)
        except _DAMAGED as error:  # RuntimeError: encrypted
            raise MidiError("unreadable", f"in {self.archive.name}: {error}") from error


@dataclass(frozen=True)
class TarMember:
    """A MIDI file of a tar; already read, because a compressed tar can only be read in order."""

    name: str
    data: bytes

    def read(self) -> bytes:
        if len(self.data) > MAX_FILE_BYTES:
            raise _too_big()
        return self.data


@dataclass(frozen=True)
class Score:
    """A score of the default corpus, turned into MIDI when it is read."""

    name: str
    path: Path

    def read(self) -> bytes:
        return score_to_midi(self.path)


@dataclass(frozen=True)
class Leaf:
    """A file on disk that is MIDI, holds MIDI, or is neither."""

    name: str
    path: Path
    kind: Literal["midi", "zip", "tar", "score", "other"]


@dataclass(frozen=True)
class Survey:
    """What a look at names and sizes says, before anything is read.

    Args:
        num_files: MIDI files, None where a tar has to be read through to know.
        fingerprint: sum over names and sizes: equal for equal input.
    """

    num_files: int | None
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """MIDI files in a fixed order.

    Args:
        name: for the manifest; the last part of the path.
        leaves: walks the files on disk, in the same order each time.
    """

    name: str
    leaves: Callable[[], Iterator[Leaf]]

    def survey(self) -> Survey:
        """Look at names and sizes.

        Raises:
            ShardError: there is neither MIDI nor an archive.
        """
        digest = hashlib.sha256()
        num_files: int | None = 0
        found_any = False
        others: Counter[str] = Counter()
        for leaf in self.leaves():
            if leaf.kind == "other":
                others[_suffix(leaf.path.name) or "no suffix"] += 1
                continue
            found_any = True
            size = leaf.path.stat().st_size if leaf.path.is_file() else -1
            digest.update(f"{leaf.name}\0{size}\0".encode())
            if leaf.kind == "tar":
                num_files = None
            elif num_files is not None:
                num_files += len(_zip_midi(leaf.path)) if leaf.kind == "zip" else 1
        if not found_any:
            raise self._without_midi(others)
        return Survey(num_files, digest.hexdigest())

    def files(self) -> Iterator[MidiFile]:
        """Every MIDI file, archives opened.

        Raises:
            ShardError: an archive is damaged, or there was no MIDI file at all.
        """
        others: Counter[str] = Counter()
        found_any = False
        for leaf in self.leaves():
            for file in _files_of(leaf, others):
                found_any = True
                yield file
        if not found_any:
            raise self._without_midi(others)

    def _without_midi(self, others: Counter[str]) -> ShardError:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        return ShardError(
            f"no MIDI in {self.name}: found {others.total()} files"
            + (f" ({kinds})" if kinds else "")
            + f"; allowed are {', '.join(MIDI_SUFFIXES)} and archives ({', '.join(ZIP_SUFFIXES)}, "
            f"{', '.join(TAR_SUFFIXES)}) of them; give another --midi"
        )


def open_source(midi: str) -> Source:
    """Take what `--midi` names.

    Args:
        midi: `default`, `chorales` (a part of it), a folder (searched through, archives in it
            opened), a .zip, a .tar(.gz), a .mid, or a text file with one such path on each line,
            relative to that file.

    Raises:
        ShardError: there is no such path.
        ConfigError: the default corpus is not installed.
    """
    if midi == DEFAULT:
        return score_source(default_corpus_paths())
    if midi == CHORALES:
        return score_source(chorale_paths(), CHORALES)
    path = Path(midi)
    if path.is_dir():
        return Source(path.resolve().name, lambda: _walk(path, ""))
    if not path.is_file():
        raise ShardError(
            f"--midi {midi}: no such file or folder; allowed: `{DEFAULT}`, `{CHORALES}`, a folder, "
            ".zip, .tar(.gz) or a list of paths"
        )
    if _kind(path.name) != "other":
        # Names inside a lone archive stand as they are, so it gives what its folder would give.
        name = path.name if _kind(path.name) == "midi" else ""
        return Source(path.name, lambda: iter([_leaf(path, name)]))
    lines = _list_lines(path)
    return Source(path.name, lambda: _walk_list(path.parent, lines))


def score_source(paths: list[Path], name: str = DEFAULT) -> Source:
    """Scores of the default corpus, or of a part of it, as a source."""
    root = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(root).as_posix() for path in paths]
    return Source(
        name,
        lambda: (Leaf(name, path, "score") for name, path in zip(names, paths, strict=True)),
    )


def _suffix(name: str) -> str:
    lowered = name.lower()
    for suffix in TAR_SUFFIXES:
        if lowered.endswith(suffix):
            return suffix
    return PurePosixPath(lowered).suffix


def _kind(name: str) -> Literal["midi", "zip", "tar", "other"]:
    suffix = _suffix(name)
    if suffix in MIDI_SUFFIXES:
        return "midi"
    if suffix in ZIP_SUFFIXES:
        return "zip"
    return "tar" if suffix in TAR_SUFFIXES else "other"


def _leaf(path: Path, name: str) -> Leaf:
    # A name that is not UTF-8 is written with escapes: it goes into JSON.
    return Leaf(os.fsencode(name).decode("utf-8", "backslashreplace"), path, _kind(path.name))


def _walk(folder: Path, prefix: str) -> Iterator[Leaf]:
    """Files below a folder, each folder sorted by name; links to folders are not followed."""
    with os.scandir(folder) as entries:
        ordered = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in ordered:
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}/")
        elif (folder / name).is_file():
            yield _leaf(folder / name, prefix + name)


def _list_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(
            f"--midi {path}: neither a folder, .zip, .tar(.gz) nor a list of paths in UTF-8 "
            f"({error})"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _walk_list(root: Path, lines: list[str]) -> Iterator[Leaf]:
    for line in lines:
        path = root / line
        if path.is_dir():
            yield from _walk(path, f"{line.rstrip('/')}/")
        else:
            yield _leaf(path, line)


def _files_of(leaf: Leaf, others: Counter[str]) -> Iterator[MidiFile]:
    match leaf.kind:
        case "midi":
            yield FileOnDisk(leaf.name, leaf.path)
        case "score":
            yield Score(leaf.name, leaf.path)
        case "zip":
            for position, name in _zip_midi(leaf.path):
                yield ZipMember(_inside(leaf, name), leaf.path, position)
        case "tar":
            yield from _tar_files(leaf, others)
        case "other":
            others[_suffix(leaf.path.name) or "no suffix"] += 1


class _WholeTarInfo(tarfile.TarInfo):
    """Headers of an archive that has to end with its own end marker.

    The library takes a header that is cut short or spoiled, after the first, for the end.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_WholeTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"it breaks off: {error}") from error


def _tar_files(leaf: Leaf, others: Counter[str]) -> Iterator[MidiFile]:
    try:
        with tarfile.open(
            leaf.path, "r|*", errors="backslashreplace", tarinfo=_WholeTarInfo
        ) as tar:
            for member in tar:
                if not member.isreg():
                    continue
                if _kind(member.name) != "midi":
                    others[_suffix(member.name) or "no suffix"] += 1
                    continue
                file = tar.extractfile(member)
                assert file is not None, "a regular member has data"
                # One byte more than allowed shows that it is too large.
                yield TarMember(_inside(leaf, member.name), file.read(MAX_FILE_BYTES + 1))
    except _DAMAGED as error:
        raise _damaged_archive(leaf.path, error) from error


def _inside(leaf: Leaf, member: str) -> str:
    return f"{leaf.name}/{member}" if leaf.name else member


@lru_cache(maxsize=4)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _zip_midi(path: Path) -> list[tuple[int, str]]:
    """(position in the directory, name) of each MIDI file of a .zip."""
    try:
        members = _open_zip(path).infolist()
    except _DAMAGED as error:
        raise _damaged_archive(path, error) from error
    return [
        (position, member.filename)
        for position, member in enumerate(members)
        if not member.is_dir() and _kind(member.filename) == "midi"
    ]


def _damaged_archive(path: Path, error: BaseException) -> ShardError:
    return ShardError(
        f"{path} is damaged or no archive ({type(error).__name__}: {error}); "
        "fetch it again, or leave it out"
    )


def _read_all(file: IO[bytes]) -> bytes:
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _too_big()
    return data


def _too_big() -> MidiError:
    return MidiError("file_too_big", f"more than {MAX_FILE_BYTES} bytes; allowed {MAX_FILE_BYTES}")
