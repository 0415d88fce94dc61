"""Which split each piece goes to: near copies together, and what has a place keeps it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.bucket_sort import ROWS_PER_BUCKET, sort_by_hash
from meloformer.shards.clusters import UnionFind
from meloformer.shards.content import KEY_LENGTH, split_of
from meloformer.shards.copies import Kept, read_rows
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.known import KNOWN_RECORD, KnownPieces
from meloformer.shards.manifest import SPLITS, ShardSettings
from meloformer.shards.near_copies import find_pairs
from meloformer.shards.spill import RECORD

PLACED_RECORD = np.dtype(
    [*RECORD.descr, ("cluster", f"S{KEY_LENGTH}"), ("signature_row", np.int64)]
)
# One row number of a pair; pairs lie on disk.
_PAIR = np.dtype("<i8")
_TUNE_ROW = np.dtype([("tune", np.uint64), ("row", np.int64)])
_CLUSTER_ROW = np.dtype([("cluster", f"S{KEY_LENGTH}"), ("row", np.int64)])
_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True)
class Placed:
    """Pieces with their split and their cluster, on disk.

    Args:
        folder: holds a file of PLACED_RECORD for each split, in the order of their keys.
        num_pieces: by split, new pieces alone.
        joining: file of RECORD: pieces left out because their cluster would join two splits.
        num_joining: of them.
        num_clusters: clusters of two or more pieces, those of known pieces among them.
        num_near_copies: pieces in them.
    """

    folder: Path
    num_pieces: tuple[int, ...]
    joining: Path
    num_joining: int
    num_clusters: int
    num_near_copies: int

    def records(self, split: str) -> Path:
        """File of PLACED_RECORD."""
        return self.folder / f"placed.{split}"


def place_pieces(kept: Kept, known: KnownPieces, settings: ShardSettings, folder: Path) -> Placed:
    """Give every piece its split.

    A cluster of near copies goes where its known pieces are; one without any goes where the tune
    of one of its pieces, chosen by hash, sends it. Holds some dozens of bytes a piece in memory.

    Args:
        kept: new pieces.
        known: pieces that have their place.
        settings: shares of the splits, and from when two pieces are near copies.
        folder: takes the files.
    """
    known_records, signatures = folder / "known.records", folder / "all.signatures"
    known.write(known_records, signatures)
    with signatures.open("ab") as file:
        for block in read_rows(kept.signatures, np.dtype(("<u4", (NUM_HASHES,)))):
            file.write(block.tobytes())
    rows = _Rows(kept, known_records, known.num_pieces)
    pairs = folder / "pairs"
    with pairs.open("wb") as file:
        for batch in _pairs(rows, settings, signatures, folder):
            # Known pieces keep their clusters: only new ones tie anything together.
            file.write(batch[batch.max(axis=1) >= rows.num_known].astype(_PAIR).tobytes())
    own_cluster = list(_known_clusters(rows, folder))
    joining = np.zeros(0, np.int64)
    while True:
        labels = _components(rows, own_cluster, pairs, joining)
        suspects = _rows_of_two_splits(rows, labels)
        if not len(suspects):
            break
        more = _joining_splits(rows, suspects, pairs)
        if not len(more):
            raise ShardError(
                "near copies stand in two splits of the folder already; make the shards again from "
                "all the files with `make shard-data`"
            )
        joining = np.union1d(joining, more)
        # A pair may have been known only through a piece that is left out now.
        remaining = np.setdiff1d(suspects, joining)
        with pairs.open("ab") as file:
            for batch in chain(
                _of_one_tune(rows, folder, remaining),
                _near_copies(settings, signatures, len(labels), folder, remaining),
            ):
                file.write(batch[batch.max(axis=1) >= rows.num_known].astype(_PAIR).tobytes())
    signatures.unlink()
    return _write(rows, labels, own_cluster, joining, settings, folder)


@dataclass(frozen=True)
class _Rows:
    """All pieces by row: the known ones, then the new ones in the order of their keys."""

    kept: Kept
    known: Path
    num_known: int

    @property
    def num_rows(self) -> int:
        return self.num_known + self.kept.num_pieces

    def tunes(self) -> np.ndarray:
        """(num_rows,) uint64."""
        tunes = np.empty(self.num_rows, np.uint64)
        row = 0
        for path, dtype in ((self.known, KNOWN_RECORD), (self.kept.records, RECORD)):
            for block in read_rows(path, dtype):
                tunes[row : row + len(block)] = block["tune"]
                row += len(block)
        return tunes

    def known_splits(self) -> np.ndarray:
        """(num_known,) uint8."""
        blocks = [block["split"] for block in read_rows(self.known, KNOWN_RECORD)]
        return np.concatenate([np.zeros(0, np.uint8), *blocks])


def _pairs(
    rows: _Rows, settings: ShardSettings, signatures: Path, folder: Path
) -> Iterator[np.ndarray]:
    """(E, 2) rows of one tune, and rows that resemble each other."""
    yield from _of_one_tune(rows, folder, np.arange(rows.num_rows))
    yield from _near_copies(settings, signatures, rows.num_rows, folder)


def _of_one_tune(rows: _Rows, folder: Path, among: np.ndarray) -> Iterator[np.ndarray]:
    """(E, 2) rows of one tune, `among` some."""
    tunes = rows.tunes()

    def batches() -> Iterator[np.ndarray]:
        for some in np.array_split(among, -(-max(len(among), 1) // ROWS_PER_BUCKET)):
            batch = np.zeros(len(some), _TUNE_ROW)
            batch["tune"], batch["row"] = tunes[some], some
            yield batch

    yield from _equal(batches(), "tune", folder, len(among))


def _near_copies(
    settings: ShardSettings,
    signatures: Path,
    num_rows: int,
    folder: Path,
    among: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """(E, 2) rows that resemble each other, of all or `among` some."""
    if not settings.near_copy_threshold or (among is not None and not len(among)):
        return
    path = signatures
    if among is not None:
        path = folder / "some.signatures"
        all_rows = np.memmap(signatures, np.dtype(("<u4", (NUM_HASHES,))), mode="r")
        path.write_bytes(all_rows[among].tobytes())
        num_rows = len(among)
    found = find_pairs(
        path,
        num_rows,
        folder / "near_copies",
        threshold=settings.near_copy_threshold,
        memory_bytes=_MEMORY_BYTES,
    )
    for batch in found:
        yield batch if among is None else among[batch]


def _known_clusters(rows: _Rows, folder: Path) -> Iterator[np.ndarray]:
    """(E, 2) rows that have one cluster already."""
    if not rows.num_known:
        return

    def batches() -> Iterator[np.ndarray]:
        row = 0
        for block in read_rows(rows.known, KNOWN_RECORD):
            batch = np.zeros(len(block), _CLUSTER_ROW)
            batch["cluster"], batch["row"] = block["cluster"], np.arange(row, row + len(block))
            row += len(block)
            yield batch

    yield from _equal(batches(), "cluster", folder, rows.num_known)


def _equal(
    batches: Iterator[np.ndarray], field: str, folder: Path, num_rows: int
) -> Iterator[np.ndarray]:
    """(E, 2) rows of each value: the first one with every other."""
    for ordered in sort_by_hash(batches, field, folder / f"by_{field}", num_rows):
        is_first = np.ones(len(ordered), bool)
        is_first[1:] = ordered[field][1:] != ordered[field][:-1]
        first = ordered["row"][np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
        yield np.stack([first, ordered["row"]], axis=1)[~is_first]


def _components(
    rows: _Rows, own_cluster: list[np.ndarray], pairs: Path, left_out: np.ndarray
) -> np.ndarray:
    """(num_rows,) smallest row of each row's component, pairs of rows left out not counted."""
    union = UnionFind(rows.num_rows)
    for batch in own_cluster:
        union.add(batch)
    for batch in _read_pairs(pairs):
        union.add(batch[~np.isin(batch, left_out).any(axis=1)])
    return union.labels()


def _read_pairs(pairs: Path) -> Iterator[np.ndarray]:
    for block in read_rows(pairs, np.dtype((_PAIR, (2,)))):
        yield block.reshape(-1, 2)


def _rows_of_two_splits(rows: _Rows, labels: np.ndarray) -> np.ndarray:
    """Rows of components that hold known pieces of more than one split."""
    found = np.zeros(rows.num_rows, np.uint8)
    np.bitwise_or.at(found, labels[: rows.num_known], np.uint8(1) << rows.known_splits())
    has_several = (found & (found - np.minimum(found, 1))) > 0  # more than one bit
    return np.flatnonzero(has_several[labels]) if has_several.any() else np.zeros(0, np.int64)


def _joining_splits(rows: _Rows, suspects: np.ndarray, pairs: Path) -> np.ndarray:
    """New rows to leave out, so that the known pairs join no two splits.

    They are looked at in the order of their keys: a row that resembles pieces of one split stays
    with them, and one that resembles pieces of two goes.
    """
    splits = rows.known_splits()
    neighbours: dict[int, set[int]] = defaultdict(set)
    for batch in _read_pairs(pairs):
        for a, b in batch[np.isin(batch, suspects).all(axis=1)].tolist():
            neighbours[a].add(b)
            neighbours[b].add(a)
    group: dict[int, _Group] = {}  # of each new row that was looked at and stays
    left_out = []
    for row in sorted(row for row in neighbours if row >= rows.num_known):
        wanted = {int(splits[n]) for n in neighbours[row] if n < rows.num_known}
        joined = [_Group({row})]
        joined += {id(group[n]): group[n] for n in neighbours[row] if n in group}.values()
        wanted |= {of.split for of in joined if of.split is not None}
        if len(wanted) > 1:
            left_out.append(row)
            continue
        # The smaller into the larger: no row changes its group more often than log of their number.
        joined.sort(key=lambda of: len(of.rows))
        largest = joined.pop()
        largest.split = wanted.pop() if wanted else None
        for smaller in joined:
            largest.rows |= smaller.rows
            group.update(dict.fromkeys(smaller.rows, largest))
        group.setdefault(row, largest)
    return np.array(left_out, np.int64)


@dataclass(eq=False)
class _Group:
    """New rows that hang together, and the split of the known pieces that they hang on."""

    rows: set[int]
    split: int | None = None


def _write(
    rows: _Rows,
    labels: np.ndarray,
    own_cluster: list[np.ndarray],
    joining: np.ndarray,
    settings: ShardSettings,
    folder: Path,
) -> Placed:
    num_known = rows.num_known
    split = _splits(rows, labels, settings)
    known_cluster = np.arange(num_known)
    for batch in own_cluster:
        known_cluster[batch[:, 1]] = batch[:, 0]
    # Clusters by name: one that new pieces join keeps the name that it has.
    name = labels.copy()
    name[:num_known] = known_cluster
    of_known = np.flatnonzero(labels[num_known:] < num_known) + num_known
    name[of_known] = known_cluster[labels[of_known]]
    is_placed = np.ones(rows.num_rows, bool)
    is_placed[joining] = False
    sizes = np.bincount(name[is_placed], minlength=rows.num_rows)

    keys = _Keys(rows)
    num_pieces = [0] * len(SPLITS)
    files = [(folder / f"placed.{of}").open("wb") for of in SPLITS]
    joining_path = folder / "joining"
    row = num_known
    with joining_path.open("wb") as joining_file:
        for block in read_rows(rows.kept.records, RECORD):
            placed = np.zeros(len(block), PLACED_RECORD)
            for column in RECORD.names or ():
                placed[column] = block[column]
            here = slice(row, row + len(block))
            placed["signature_row"] = np.arange(here.start, here.stop) - num_known
            placed["cluster"] = keys.of(name[here])
            joining_file.write(block[~is_placed[here]].tobytes())
            for number, file in enumerate(files):
                chosen = placed[is_placed[here] & (split[here] == number)]
                file.write(chosen.tobytes())
                num_pieces[number] += len(chosen)
            row = here.stop
    for file in files:
        file.close()
    return Placed(
        folder=folder,
        num_pieces=tuple(num_pieces),
        joining=joining_path,
        num_joining=len(joining),
        num_clusters=int(np.count_nonzero(sizes > 1)),
        num_near_copies=int(sizes[sizes > 1].sum()),
    )


def _splits(rows: _Rows, labels: np.ndarray, settings: ShardSettings) -> np.ndarray:
    """(num_rows,) uint8 index into SPLITS."""
    # The tune of which member decides must not depend on where its hash stands between 0 and 1,
    # or large clusters would crowd into the first split: so the last byte chooses first.
    tunes = rows.tunes().byteswap()
    chosen = np.full(rows.num_rows, np.iinfo(np.uint64).max)
    np.minimum.at(chosen, labels, tunes)
    del tunes
    splits = split_of(chosen.byteswap(), settings).astype(np.uint8)[labels]
    known = np.full(rows.num_rows, len(SPLITS), np.uint8)
    known[labels[: rows.num_known]] = rows.known_splits()
    return np.where(known[labels] < len(SPLITS), known[labels], splits)


class _Keys:
    """Keys of rows, read from disk as they are asked for."""

    def __init__(self, rows: _Rows) -> None:
        self._num_known = rows.num_known
        self._known = _mapped(rows.known, KNOWN_RECORD)
        self._new = _mapped(rows.kept.records, RECORD)

    def of(self, names: np.ndarray) -> np.ndarray:
        """(N,) keys; of a known row the name of its cluster."""
        keys = np.empty(len(names), f"S{KEY_LENGTH}")
        is_known = names < self._num_known
        keys[is_known] = self._known["cluster"][names[is_known]]
        keys[~is_known] = self._new["key"][names[~is_known] - self._num_known]
        return keys


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    if not path.stat().st_size:  # nothing cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
