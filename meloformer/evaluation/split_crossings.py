"""Does anything that is held out stand in training too: copies, near copies, versions of a tune?

What is compared was written down when the shards were made: keys (hashes of all notes), tunes
(hashes of onsets and intervals) and the clusters of near copies. Folders split their pieces each
for itself, so near copies are looked for anew between folders that are trained on together.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meloformer.batches.held_out import held_out_elsewhere
from meloformer.shards.known import load_copies
from meloformer.shards.manifest import SPLITS
from meloformer.shards.near_copies import find_pairs
from meloformer.shards.reader import ShardFolder

TRAIN, *HELD_OUT = SPLITS


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitPieces:
    """All pieces of a split.

    Args:
        keys: (P,) bytes, equal for exact copies.
        tunes: (P,) uint64, equal for one tune in any key and instruments.
        clusters: (P,) bytes, equal for near copies.
    """

    keys: np.ndarray
    tunes: np.ndarray
    clusters: np.ndarray

    def joined(self, *others: "SplitPieces") -> "SplitPieces":
        """These and others."""
        columns = {n: [vars(some)[n] for some in (self, *others)] for n in vars(self)}
        return SplitPieces(**{name: np.concatenate(parts) for name, parts in columns.items()})

    def at(self, rows: np.ndarray | slice) -> "SplitPieces":
        """Some of them."""
        return SplitPieces(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """What stands in more than one split.

    Args:
        num_pieces: pieces that were looked at.
        num_left_out: training pieces that no epoch takes, since another folder holds them out.
        keys: exact copies that cross.
        tunes: tunes that cross, in whatever key.
        clusters: clusters of near copies that cross.
        pairs: pairs of near copies, one for training in one folder, the other held out by another
            folder; None of a single folder.
        not_looked_for: names of folders that were made without looking for near copies.
    """

    num_pieces: int
    num_left_out: int
    keys: int
    tunes: int
    clusters: int
    pairs: int | None
    not_looked_for: tuple[str, ...]

    @property
    def total(self) -> int:
        """All that crosses."""
        return self.keys + self.tunes + self.clusters + (self.pairs or 0)


def find_crossings(folders: Sequence[ShardFolder], *, is_planted: bool = False) -> Crossings:
    """Count what crosses, over all pieces of folders that are trained on together.

    Args:
        folders: in the order of --data.
        is_planted: say, in memory, that the first training piece is held out too, with its copy.

    Raises:
        ShardError: a file is missing or damaged.
    """
    splits = [{name: read_split(folder, name) for name in SPLITS} for folder in folders]
    if is_planted:
        first = splits[0]
        first["valid"] = first["valid"].joined(first["train"].at(slice(1)))
    left_out = tuple(np.zeros(0, np.int64) for _ in folders)
    if len(folders) > 1:
        indices = [[folder.split(name) for name in SPLITS] for folder in folders]
        left_out = held_out_elsewhere([of[0] for of in indices], [of[1:] for of in indices])
    train = [
        of["train"].at(np.delete(np.arange(len(of["train"].keys)), out))
        for of, out in zip(splits, left_out, strict=True)
    ]
    together = [train[0].joined(*train[1:])]
    for name in HELD_OUT:
        parts = [of[name] for of in splits]
        together.append(parts[0].joined(*parts[1:]))
    crossing = {
        column: _num_crossing([vars(split)[column] for split in together])
        for column in ("keys", "tunes", "clusters")
    }
    return Crossings(
        num_pieces=sum(len(split.keys) for split in together),
        num_left_out=sum(map(len, left_out)),
        **crossing,
        pairs=_pairs_between(folders, left_out) if len(folders) > 1 else None,
        not_looked_for=tuple(
            folder.storage.name
            for folder in folders
            if not folder.manifest.settings.near_copy_threshold
        ),
    )


def read_split(folder: ShardFolder, name: str) -> SplitPieces:
    """Keys, tunes and clusters of all pieces of a split.

    Raises:
        ShardError: a file is missing or damaged.
    """
    index = folder.split(name)
    keys = [index.keys_of_shard(shard).copy() for shard in range(index.num_shards)]
    rows = [(copies["tune"], copies["cluster"]) for copies in _copies(folder, name)]
    return SplitPieces(
        keys=np.concatenate([np.zeros(0, "S1"), *keys]),
        tunes=np.concatenate([np.zeros(0, np.uint64), *(tunes for tunes, _ in rows)]),
        clusters=np.concatenate([np.zeros(0, "S1"), *(clusters for _, clusters in rows)]),
    )


def _copies(folder: ShardFolder, name: str) -> Iterator[np.ndarray]:
    for entry in folder.split(name).entries:
        (file,) = (file for file in entry.files() if file[0] == entry.signatures_file)
        path = folder.storage.fetch(file[0], num_bytes=file[1], sha256=file[2])
        yield load_copies(path, entry)


def _num_crossing(of_splits: Sequence[np.ndarray]) -> int:
    """Values that stand in more than one of some arrays."""
    values = np.concatenate([np.unique(column) for column in of_splits])
    _, counts = np.unique(values, return_counts=True)
    return int((counts > 1).sum())


def _pairs_between(folders: Sequence[ShardFolder], left_out: Sequence[np.ndarray]) -> int:
    """Near copies, one for training in one folder, the other held out by another."""
    thresholds = [folder.manifest.settings.near_copy_threshold for folder in folders]
    threshold = min((each for each in thresholds if each), default=0.0)
    if not threshold:
        return 0
    # A number of its folder for each row; below zero where it is held out.
    owners: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "signatures"
        with path.open("wb") as file:
            for number, folder in enumerate(folders, start=1):
                for name in SPLITS:
                    owner = [np.zeros(0, np.int32)]
                    for rows in _copies(folder, name):
                        file.write(rows["signature"].astype("<u4").tobytes())
                        owner.append(np.full(len(rows), number, np.int32))
                    whole = np.concatenate(owner)
                    if name == TRAIN:
                        whole[left_out[number - 1]] = 0
                    owners.append(whole if name == TRAIN else -whole)
        owner_of = np.concatenate(owners)
        pairs = find_pairs(path, len(owner_of), Path(scratch) / "pairs", threshold=threshold)
        crossing = set()
        for batch in pairs:
            a, b = owner_of[batch[:, 0]], owner_of[batch[:, 1]]
            is_crossing = (a * b < 0) & (a != -b)
            crossing |= set(map(tuple, batch[is_crossing].tolist()))
    return len(crossing)
