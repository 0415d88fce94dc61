"""Exact copies: of pieces with one key the first one stays, the others are written down."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meloformer.shards.bucket_sort import sort_by_hash
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.spill import RECORD, ChunkTable

# A piece on its way through the sort. Pieces that a folder holds already have the chunk KNOWN, and
# their number in it for a row.
SIGNED_RECORD = np.dtype([*RECORD.descr, ("signature", "<u4", (NUM_HASHES,))])
KNOWN = -1


@dataclass(frozen=True)
class Kept:
    """Pieces without exact copies, on disk, in the order of their keys.

    Args:
        records: file of RECORD.
        signatures: file of (num_pieces, NUM_HASHES) uint32, in the same order.
        copies: file of pairs of RECORD: a copy, and what it repeats.
        num_pieces: of them.
        num_copies: of them.
    """

    records: Path
    signatures: Path
    copies: Path
    num_pieces: int
    num_copies: int


def separate_copies(
    batches: Iterable[np.ndarray],
    num_rows: int,
    folder: Path,
    *,
    rows_per_bucket: int | None = None,
) -> Kept:
    """Keep one piece of each key: a known one, else the first of the input.

    Args:
        batches: SIGNED_RECORD, known pieces first, then in the order of the input.
        num_rows: how many.
        folder: takes the files.
        rows_per_bucket: for tests of the sort.
    """
    paths = [folder / f"kept.{name}" for name in ("records", "signatures", "copies")]
    num_pieces = num_copies = 0
    size = {} if rows_per_bucket is None else {"rows_per_bucket": rows_per_bucket}
    with ExitStack() as stack:
        records, signatures, copies = (stack.enter_context(path.open("wb")) for path in paths)
        for rows in sort_by_hash(batches, "key", folder / "by_key", num_rows, **size):
            is_first = np.ones(len(rows), bool)
            is_first[1:] = rows["key"][1:] != rows["key"][:-1]
            keeper = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
            copy = np.flatnonzero(~is_first & (rows["chunk"] != KNOWN))
            new = np.flatnonzero(is_first & (rows["chunk"] != KNOWN))
            records.write(without_signature(rows[new]).tobytes())
            signatures.write(rows["signature"][new].tobytes())
            pairs = np.stack([rows[copy], rows[keeper[copy]]], axis=1)
            copies.write(without_signature(pairs).tobytes())
            num_pieces, num_copies = num_pieces + len(new), num_copies + len(copy)
    return Kept(paths[0], paths[1], paths[2], num_pieces, num_copies)


def signed(table: ChunkTable) -> np.ndarray:
    """(N,) SIGNED_RECORD of a chunk's pieces."""
    rows = np.zeros(len(table.records), SIGNED_RECORD)
    for name in RECORD.names or ():
        rows[name] = table.records[name]
    rows["signature"] = table.signatures
    return rows


def without_signature(rows: np.ndarray) -> np.ndarray:
    """The same rows as RECORD."""
    records = np.zeros(rows.shape, RECORD)
    for name in RECORD.names or ():
        records[name] = rows[name]
    return records


def read_rows(path: Path, dtype: np.dtype, rows_at_once: int = 1 << 16) -> Iterator[np.ndarray]:
    """A file of fixed-size rows, in blocks."""
    with path.open("rb") as file:
        while len(rows := np.fromfile(file, dtype, rows_at_once)):
            yield rows
