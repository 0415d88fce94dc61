"""What a build leaves out though it could be read: every such file, with the reason."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.shards.copies import KNOWN, Kept, read_rows
from meloformer.shards.known import KnownPieces
from meloformer.shards.manifest import REJECTED_NAME
from meloformer.shards.placing import Placed
from meloformer.shards.spill import RECORD, piece_facts, rejected_line

# Reason of a file that resembles pieces of two splits of the folder it would be added to.
JOINS_TWO_SPLITS = "joins_two_splits"

_COPY_PAIR = np.dtype((RECORD, (2,)))


@dataclass(frozen=True)
class LeftOut:
    """Exact copies of pieces, and what would join two splits.

    Args:
        kept: the pieces and their copies.
        placed: where the pieces go, if anywhere.
        known: pieces that were there before.
        spill: folder of the converted pieces.
    """

    kept: Kept
    placed: Placed
    known: KnownPieces
    spill: Path

    @property
    def num_copies(self) -> int:
        """Copies of pieces that stay."""
        return self.kept.num_copies - (self.num_joining - self.placed.num_joining)

    @cached_property
    def num_joining(self) -> int:
        """Pieces that would join two splits, and their copies, which repeat nothing that stays."""
        return self.placed.num_joining + sum(1 for _ in self._copies(of_joining=True))

    def lines(self) -> Iterator[str]:
        """Of rejected.jsonl: the copies, then what would join two splits."""
        for copy, original in self._copies(of_joining=False):
            repeats = (
                self.known.source(int(original["row"]))
                if original["chunk"] == KNOWN
                else piece_facts(self.spill, original)["source"]
            )
            yield self._line(copy, original, "duplicate", repeats=repeats)
        detail = "resembles pieces of two splits; near copies stand in one"
        for record in _records(self.placed.joining):
            yield self._line(record, record, JOINS_TWO_SPLITS, detail=detail)
        for copy, original in self._copies(of_joining=True):
            yield self._line(copy, original, JOINS_TWO_SPLITS, detail=detail)

    def _line(self, record: np.void, original: np.void, reason: str, **said: Any) -> str:
        path, key = piece_facts(self.spill, record)["source"], original["key"].decode()
        return rejected_line({"path": path, "reason": reason, **said, "key": key})

    @cached_property
    def _joining(self) -> frozenset[tuple[int, int]]:
        return frozenset(map(_place, _records(self.placed.joining)))

    def _copies(self, *, of_joining: bool) -> Iterator[tuple[np.void, np.void]]:
        """Each copy with what it repeats, which would join two splits or not."""
        if of_joining and not self._joining:
            return
        for block in read_rows(self.kept.copies, _COPY_PAIR):
            for copy, original in block.reshape(-1, 2):
                if (_place(original) in self._joining) == of_joining:
                    yield copy, original


def write_rejected(folder: Path, base: Path | None, lines: Iterable[str]) -> None:
    """Write rejected.jsonl into a shard folder, behind the lines of the folder that it extends."""
    path = folder / REJECTED_NAME
    if base is not None:
        shutil.copyfile(base / REJECTED_NAME, path)
    with path.open("w" if base is None else "a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _place(record: np.void) -> tuple[int, int]:
    return int(record["chunk"]), int(record["row"])


def _records(path: Path) -> Iterator[np.void]:
    for block in read_rows(path, RECORD):
        yield from block
