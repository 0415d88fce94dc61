"""Pieces that a shard folder holds already: what appending to it has to know of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.content import KEY_LENGTH
from meloformer.shards.copies import KNOWN, SIGNED_RECORD
from meloformer.shards.manifest import SPLITS, Manifest, ShardEntry, load_manifest
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.shards.tars import COPY_RECORD

KNOWN_RECORD = np.dtype(
    [
        ("key", f"S{KEY_LENGTH}"),
        ("tune", "<u8"),
        ("cluster", f"S{KEY_LENGTH}"),
        ("split", np.uint8),
    ]
)


@dataclass(frozen=True)
class KnownPieces:
    """The pieces of a folder, numbered through its splits and shards; none for a new folder.

    Args:
        folder: of the shards; None where there are none.
        entries: (split, shard), in order.
    """

    folder: Path | None
    entries: tuple[tuple[int, ShardEntry], ...]

    @classmethod
    def none(cls) -> "KnownPieces":
        """For a folder that is made anew."""
        return cls(None, ())

    @classmethod
    def of(cls, folder: Path) -> "KnownPieces":
        """Those of a shard folder."""
        splits = load_manifest(folder).splits
        return cls(
            folder,
            tuple((number, entry) for number, name in enumerate(SPLITS) for entry in splits[name]),
        )

    @property
    def num_pieces(self) -> int:
        return sum(entry.pieces for _, entry in self.entries)

    def manifest(self) -> Manifest | None:
        """That of the folder."""
        return load_manifest(self.folder) if self.folder else None

    def keys(self) -> Iterator[np.ndarray]:
        """SIGNED_RECORD of each shard, without signatures: enough to find exact copies."""
        first = 0
        for rows, _ in self._shards():
            batch = np.zeros(len(rows), SIGNED_RECORD)
            batch["key"], batch["tune"] = rows["key"], rows["tune"]
            batch["chunk"], batch["row"] = KNOWN, np.arange(first, first + len(rows))
            first += len(rows)
            yield batch

    def write(self, records: Path, signatures: Path) -> None:
        """Write all of them as files of KNOWN_RECORD and of (K, NUM_HASHES) uint32."""
        with records.open("wb") as records_file, signatures.open("wb") as signatures_file:
            for rows, signature in self._shards():
                records_file.write(rows.tobytes())
                signatures_file.write(signature.tobytes())

    def source(self, number: int) -> str:
        """Name of the file that a piece came from."""
        for split in self._splits:
            if number < split.num_pieces:
                return split.facts(number)["source"]
            number -= split.num_pieces
        raise AssertionError("known pieces are numbered through all splits")

    @cached_property
    def _splits(self) -> tuple[SplitIndex, ...]:
        assert self.folder is not None, "there are no known pieces"
        shards = ShardFolder.open(self.folder)
        return tuple(shards.split(name) for name in SPLITS)

    def _shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """KNOWN_RECORD and signatures, shard by shard."""
        if self.folder is None:
            return
        for split, entry in self.entries:
            copies = load_copies(self.folder / entry.signatures_file, entry)
            rows = np.zeros(len(copies), KNOWN_RECORD)
            with np.load(self.folder / entry.index_file, allow_pickle=False) as index:
                rows["key"] = index["keys"]
            rows["tune"], rows["cluster"], rows["split"] = copies["tune"], copies["cluster"], split
            yield rows, copies["signature"]


def load_copies(path: Path, entry: ShardEntry) -> np.ndarray:
    """(P,) COPY_RECORD of a shard's pieces.

    Raises:
        ShardError: the file is damaged.
    """
    try:
        copies = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({error}); copy the shards again") from error
    if copies.dtype != COPY_RECORD or len(copies) != entry.pieces:
        raise ShardError(
            f"{path}: found {len(copies)} rows of {copies.dtype}, expected {entry.pieces} rows of "
            "signatures; copy the shards again, or make them again with `make shard-data`"
        )
    return copies
