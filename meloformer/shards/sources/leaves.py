"""Files on disk as a walk meets them: what each says at a look, and the MIDI files it holds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from meloformer.errors import ShardError
from meloformer.shards.sources.columns import ColumnsMet
from meloformer.shards.sources.files import FileOnDisk, MidiFile, RefusedFile, Score
from meloformer.shards.sources.kinds import Kind, kind_of, suffix_of
from meloformer.shards.sources.licences import READ_BYTES, Licences


@dataclass
class Findings:
    """What a walk met besides MIDI.

    Args:
        others: files that are neither MIDI nor hold any, by suffix.
        licences: licence files, in archives too where they were read.
        columns: of tables, taken and left out; a survey meets them.
    """

    others: Counter[str] = field(default_factory=Counter)
    licences: Licences = field(default_factory=Licences)
    columns: ColumnsMet = field(default_factory=ColumnsMet)

    def add_other(self, name: str) -> None:
        self.others[suffix_of(name) or "no suffix"] += 1


class Leaf(Protocol):
    """A file on disk."""

    @property
    def name(self) -> str:
        """Path inside the source."""

    @property
    def path(self) -> str:
        """Where it lies."""

    @property
    def holds_midi(self) -> bool:
        """It is MIDI, or ought to hold some."""

    def survey(self, findings: Findings) -> int | None:
        """Number of MIDI files; None where it has to be read through to know."""

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        """The MIDI files."""


@dataclass(frozen=True)
class LooseFile:
    """A MIDI file; one of a list may be missing, one that a walk has met may not."""

    name: str
    path: str
    holds_midi: bool = True
    was_seen: bool = True

    def survey(self, findings: Findings) -> int:
        return 1

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        yield FileOnDisk(self.name, self.path, was_seen=self.was_seen)


@dataclass(frozen=True)
class ScoreLeaf:
    """A score of the default corpus."""

    name: str
    path: str
    holds_midi: bool = True

    def survey(self, findings: Findings) -> int:
        return 1

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        yield Score(self.name, Path(self.path))


@dataclass(frozen=True)
class Refusal:
    """Something that may hold MIDI and is not looked into: counted, never dropped silently."""

    name: str
    path: str
    reason: str
    detail: str
    holds_midi: bool = True

    def survey(self, findings: Findings) -> int:
        return 1

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        yield RefusedFile(self.name, self.reason, self.detail)


@dataclass(frozen=True)
class Bystander:
    """A file that is no music: a licence, or anything else."""

    name: str
    path: str
    holds_midi: bool = False

    def survey(self, findings: Findings) -> int:
        findings.add_other(self.name)
        if kind_of(self.name) is Kind.LICENCE:
            try:
                with open(self.path, "rb") as file:
                    findings.licences.add(self.name, file.read(READ_BYTES))
            except OSError:  # no reason to refuse the music
                return 0
        return 0

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        findings.add_other(self.name)
        yield from ()


def unopened(name: str) -> RefusedFile:
    """An archive inside an archive, or of a kind that is not read."""
    return RefusedFile(
        name, "unopened_archive", "inside an archive, or of a kind that is not read; unpack it"
    )


def damaged(path: str, error: BaseException) -> ShardError:
    """The refusal of an archive or table that cannot be read through."""
    return ShardError(
        f"{path} is damaged or no archive ({type(error).__name__}: {error}); "
        "fetch it again, or leave it out"
    )
