"""What `--midi` names: MIDI files in a fixed order."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meloformer.errors import ConfigError, ShardError
from meloformer.midi.default_corpus import chorale_paths, default_corpus_paths
from meloformer.shards.sources.files import MidiFile
from meloformer.shards.sources.kinds import ALLOWED, Kind, kind_of
from meloformer.shards.sources.leaves import Findings, Leaf, ScoreLeaf
from meloformer.shards.sources.walk import check_list, leaf_of, walk_folder, walk_list

DEFAULT = "default"
CHORALES = "chorales"

_ALLOWED = (
    f"`{DEFAULT}`, `{CHORALES}`, a folder, .zip, .tar(.gz), .parquet, .arrow or a list of paths"
)
_CONTAINED = frozenset({Kind.ZIP, Kind.TAR})


@dataclass(frozen=True)
class Survey:
    """What a look at names and sizes says, before anything is read.

    Args:
        num_files: MIDI files, those counted that will be refused; None where a tar has to be read
            through to know.
        fingerprint: sum over names and sizes: equal for equal input.
        licences: `name: guess` of each licence file in folders and .zip archives; those in tars are
            met later: see Source.licences.
        columns: of tables: `name: what was taken as what, and what was left out`.
    """

    num_files: int | None
    fingerprint: str
    licences: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """MIDI files in a fixed order.

    Args:
        name: for the manifest; the last part of the path.
        leaves: walks the files on disk, in the same order each time.
        findings: what the walks so far met besides MIDI.
    """

    name: str
    leaves: Callable[[], Iterator[Leaf]]
    findings: Findings = field(default_factory=Findings, compare=False)

    def survey(self) -> Survey:
        """Look at names and sizes.

        Raises:
            ShardError: there is neither MIDI nor an archive.
            ConfigError: there is a table, and nothing installed to read it with.
        """
        self.findings.others.clear()
        self.findings.columns.clear()
        digest = hashlib.sha256()
        num_files: int | None = 0
        found_any = False
        for leaf in self.leaves():
            count = leaf.survey(self.findings)
            if not leaf.holds_midi:
                continue
            found_any = True
            digest.update(f"{leaf.name}\0{_size(leaf.path)}\0".encode())
            num_files = None if num_files is None or count is None else num_files + count
        if not found_any:
            raise self._without_midi()
        columns = self.findings.columns.lines()
        return Survey(num_files, digest.hexdigest(), self.licences(), columns)

    def files(self) -> Iterator[MidiFile]:
        """Every MIDI file, archives and tables opened.

        What may be MIDI and is not read (a link, an archive in an archive) comes as a file whose
        reading gives the reason.

        Raises:
            ShardError: an archive is damaged or swells, or there was no MIDI file at all.
        """
        self.findings.others.clear()
        found_any = False
        for leaf in self.leaves():
            for file in leaf.files(self.findings):
                found_any = True
                yield file
        if not found_any:
            raise self._without_midi()

    def licences(self) -> tuple[str, ...]:
        """`name: guess` of each licence file met so far: all of them when files() has ended."""
        return self.findings.licences.lines()

    def _without_midi(self) -> ShardError:
        others: Counter[str] = self.findings.others
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        return ShardError(
            f"no MIDI in {self.name}: found {others.total()} files"
            + (f" ({kinds})" if kinds else "")
            + f"; allowed are {ALLOWED}; give another --midi"
        )


def open_source(midi: str) -> Source:
    """Take what `--midi` names.

    Args:
        midi: `default`, `chorales` (a part of it), a folder (searched through; archives and tables
            in it are opened, Hugging Face datasets too), a .zip, a .tar(.gz), a .parquet or .arrow,
            a .mid, or a text file with one such path on each line, relative to that file.

    Raises:
        ShardError: there is no such path, or it is none of these.
        ConfigError: the default corpus is not installed.
    """
    if midi == DEFAULT:
        return score_source(default_corpus_paths())
    if midi == CHORALES:
        return score_source(chorale_paths(), CHORALES)
    if not midi:
        raise ConfigError(f'--midi "": found no name; allowed: {_ALLOWED}')
    # Workers on other machines stand in other folders.
    given, midi = midi, os.path.abspath(midi)
    path = Path(midi)
    if path.is_dir():
        return Source(path.resolve().name, lambda: walk_folder(midi, ""))
    if not path.is_file():
        raise ShardError(
            f"--midi {given}: no such file or folder (looked for {midi}); allowed: {_ALLOWED}"
        )
    kind = kind_of(path.name)
    if kind not in (Kind.OTHER, Kind.LICENCE):
        # Names inside a lone archive stand as they are, so it gives what its folder would give.
        name = "" if kind in _CONTAINED else path.name
        return Source(path.name, lambda: iter([leaf_of(midi, name)]))
    check_list(midi)
    return Source(path.name, lambda: walk_list(midi))


def score_source(paths: list[Path], name: str = DEFAULT) -> Source:
    """Scores of the default corpus, or of a part of it, as a source."""
    root = os.path.commonpath([path.parent for path in paths])
    return Source(
        name,
        lambda: (ScoreLeaf(path.relative_to(root).as_posix(), str(path)) for path in paths),
    )


def _size(path: str) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a zero byte in a listed path
        return -1
