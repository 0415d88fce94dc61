"""Sorting on disk by a hash: rows go to buckets by its first bits, each bucket is sorted alone.

A hash spreads evenly, so every bucket is small, and memory does not grow with the number of rows.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

ROWS_PER_BUCKET = 1 << 15
_MOST_BUCKETS = 1 << 12
_HEX_DIGITS = 4


def sort_by_hash(
    batches: Iterable[np.ndarray],
    field: str,
    folder: Path,
    num_rows: int,
    *,
    rows_per_bucket: int = ROWS_PER_BUCKET,
) -> Iterator[np.ndarray]:
    """Rows in ascending order of a field; equal ones in the order in which they came.

    Args:
        batches: structured arrays of one dtype.
        field: uint64, or bytes of hex digits; evenly spread.
        folder: made for the buckets, emptied on the way.
        num_rows: about how many rows come.
        rows_per_bucket: what is held in memory at once, about.

    Returns:
        Sorted arrays that together are the sorted whole.

    >>> from tempfile import TemporaryDirectory
    >>> rows = np.array([(7 << 60,), (1,), (9,)], dtype=[("hash", np.uint64)])
    >>> with TemporaryDirectory() as folder:
    ...     [r["hash"].tolist() for r in sort_by_hash([rows], "hash", Path(folder) / "b", 3)]
    [[1, 9, 8070450532247928832]]
    """
    num_buckets = min(max(-(-num_rows // rows_per_bucket), 1), _MOST_BUCKETS)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{bucket:04d}" for bucket in range(num_buckets)]
    for path in paths:
        path.unlink(missing_ok=True)  # of a sort that was killed
    dtype = None
    for rows in _gathered(batches, rows_per_bucket):
        dtype = rows.dtype
        bucket = _first_bits(rows[field]) * num_buckets >> 16
        order = np.argsort(bucket, kind="stable")
        edges = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
        for number in np.flatnonzero(np.diff(edges)).tolist():
            with paths[number].open("ab") as file:
                file.write(rows[order[edges[number] : edges[number + 1]]].tobytes())
    for path in paths:
        if path.exists():
            rows = np.fromfile(path, dtype=dtype)
            yield rows[np.argsort(rows[field], kind="stable")]
            path.unlink()
    folder.rmdir()


def _gathered(batches: Iterable[np.ndarray], num_rows: int) -> Iterator[np.ndarray]:
    """Fewer and larger batches: each one opens every bucket once."""
    waiting: list[np.ndarray] = []
    num_waiting = 0
    for rows in batches:
        waiting.append(rows)
        num_waiting += len(rows)
        if num_waiting >= num_rows:
            yield np.concatenate(waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _first_bits(values: np.ndarray) -> np.ndarray:
    """(N,) int64, the first 16 bits of each hash."""
    if values.dtype.kind != "S":
        return (values >> np.uint64(48)).astype(np.int64)
    width = values.dtype.itemsize
    digits = (
        np.ascontiguousarray(values).view(np.uint8).reshape(len(values), width)[:, :_HEX_DIGITS]
    )
    nibble = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0"))
    return nibble.astype(np.int64) @ (16 ** np.arange(_HEX_DIGITS)[::-1])
