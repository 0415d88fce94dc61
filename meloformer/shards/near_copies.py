"""Pairs of near copies among any number of signatures, in bounded memory.

Signatures are cut into bands of a few hashes. Pieces that agree in a whole band are candidates,
compared over all hashes. Each band is sorted by itself, range by range, from a file on disk.

Source: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3 (banding).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.fingerprints import NO_FINGERPRINT, NUM_HASHES

# Of pairs that share a quarter of their figures, 98 in 100 agree in some band of two hashes; were
# bands three hashes long, half of them would.
_HASHES_PER_BAND = 2
_NUM_BANDS = NUM_HASHES // _HASHES_PER_BAND
# In a bucket, sorted by the next band, a piece is compared with this many that follow it. Copies
# that do not meet among many others meet in another band's bucket.
_REACH = 3

_ROW_BYTES = 4 * NUM_HASHES
_KEY_BYTES = 8
_SORTING_BYTES = 80  # of each key of a range, while its buckets are sorted
_COMPARING_BYTES = 8 * _ROW_BYTES  # of each pair
_MAX_COMPARED = 1 << 13  # more at a time are not faster
_PIECES_PER_PART, _MAX_PARTS = 100_000, 64  # of the files that candidates are spread over
_GAP_ROWS = 16  # reading over them is faster than another read
_NO_KEY = np.uint64(2**64 - 1)


def find_pairs(
    signatures: Path,
    num_pieces: int,
    scratch: Path,
    *,
    threshold: float,
    memory_bytes: int = 256 << 20,
) -> Iterator[np.ndarray]:
    """Pairs whose signatures agree in at least a share of their hashes.

    Among many pieces that agree in a band only neighbours are compared, so the work stays in
    proportion to the pieces; what they join transitively (`UnionFind`) is the result.

    Args:
        signatures: file of (num_pieces, NUM_HASHES) little-endian uint32.
        num_pieces: rows of that file.
        scratch: folder for temporary files, which take as much as `signatures` and more where near
            copies abound.
        threshold: least share of equal hashes, above 0, at most 1.
        memory_bytes: what all arrays may take together.

    Yields:
        (E, 2) int64 rows, the smaller one first. A pair may come twice where memory is short.

    Raises:
        ShardError: the file is of another size.
    """
    if (size := signatures.stat().st_size) != num_pieces * _ROW_BYTES:
        raise ShardError(
            f"{signatures}: found {size:,} bytes, expected {num_pieces * _ROW_BYTES:,}, the "
            f"signatures of {num_pieces:,} pieces; delete the unfinished output and build again"
        )
    if num_pieces < 2:
        return
    scratch.mkdir(parents=True, exist_ok=True)
    bands = scratch / "bands"
    num_parts = min(1 + num_pieces // _PIECES_PER_PART, _MAX_PARTS)
    parts = [scratch / f"candidates-{part:02d}" for part in range(num_parts)]
    try:
        with signatures.open("rb", buffering=0) as rows:
            _write_bands(rows, num_pieces, bands, memory_bytes)
            with bands.open("rb", buffering=0) as keys, ExitStack() as stack:
                files = [stack.enter_context(part.open("wb", buffering=0)) for part in parts]
                for packed in _candidates(keys, num_pieces, memory_bytes):
                    _spread(packed, num_pieces, files)
            bands.unlink()
            for part in parts:
                for packed in _distinct(part, memory_bytes):
                    yield from _verified(rows, packed, num_pieces, threshold, memory_bytes)
                part.unlink()
    finally:
        for path in (bands, *parts):
            path.unlink(missing_ok=True)


def _row_bits(num_pieces: int) -> np.uint64:
    return np.uint64((num_pieces - 1).bit_length())


def _write_bands(rows: BinaryIO, num_pieces: int, bands: Path, memory_bytes: int) -> None:
    """Write one column of keys for each band, one key for each piece.

    A key is a single integer, the band's hashes scrambled in its high bits and the row in its low
    ones: one sort brings equal bands together and still tells whose they are. Scrambled, because
    least values crowd together at the low end.
    """
    row_bits = _row_bits(num_pieces)
    block = max(1, memory_bytes // (4 * _ROW_BYTES))
    with bands.open("wb", buffering=0) as file:
        for start in range(0, num_pieces, block):
            num = min(block, num_pieces - start)
            hashes = _read(rows, start * _ROW_BYTES, num * _ROW_BYTES, "<u4")
            hashes = hashes.reshape(num, NUM_HASHES)
            is_empty = (hashes == NO_FINGERPRINT).all(axis=1)
            own_row = np.arange(start, start + num, dtype=np.uint64)
            for band in range(_NUM_BANDS):
                key = np.zeros(num, np.uint64)
                for column in range(band * _HASHES_PER_BAND, (band + 1) * _HASHES_PER_BAND):
                    key = (key ^ hashes[:, column]) * np.uint64(0x9E3779B97F4A7C15)
                    key ^= key >> np.uint64(32)
                key *= np.uint64(0xC4CEB9FE1A85EC53)
                key = key >> row_bits << row_bits | own_row
                key[is_empty] = _NO_KEY
                file.seek((band * num_pieces + start) * _KEY_BYTES)
                file.write(key.astype("<u8", copy=False).tobytes())


def _candidates(keys: BinaryIO, num_pieces: int, memory_bytes: int) -> Iterator[np.ndarray]:
    """Neighbours in the buckets of all bands, as packed pairs; some come from several bands."""
    capacity = max(256, memory_bytes // _SORTING_BYTES)
    num_ranges = 1 + num_pieces * 4 // (3 * capacity)
    edges = [2**64 * place // num_ranges for place in range(num_ranges)] + [2**64 - 1]
    for band in range(_NUM_BANDS):
        next_band = (band + 1) % _NUM_BANDS
        for low, high in pairwise(edges):
            last_ones = np.zeros(0, np.uint64)
            for found in _range(keys, band, num_pieces, np.uint64(low), np.uint64(high), capacity):
                found = np.concatenate([last_ones, found])
                found.sort()
                bucket = found >> _row_bits(num_pieces)
                is_last = np.ones(len(found), bool)
                np.not_equal(bucket[1:], bucket[:-1], out=is_last[:-1])
                if not is_last.all():
                    yield _neighbours(found, is_last, keys, next_band, num_pieces, capacity)
                # Should one bucket fill more than the memory, its parts hang together by one piece.
                last_ones = found[is_last][: capacity // 2]


def _range(
    keys: BinaryIO, band: int, num_pieces: int, low: np.uint64, high: np.uint64, capacity: int
) -> Iterator[np.ndarray]:
    """The keys of one band within low <= key < high; mostly all at once."""
    found: list[np.ndarray] = []
    num_found = 0
    for block in _blocks(keys, band, num_pieces, capacity):
        within = block[(block >= low) & (block < high)]
        if num_found + len(within) > capacity:
            yield np.concatenate(found)
            found, num_found = [], 0
        found.append(within)
        num_found += len(within)
    yield np.concatenate(found)


def _blocks(keys: BinaryIO, band: int, num_pieces: int, capacity: int) -> Iterator[np.ndarray]:
    """All keys of a band, a block at a time."""
    block = max(1, capacity // 4)
    for start in range(0, num_pieces, block):
        num = min(block, num_pieces - start)
        yield _read(keys, (band * num_pieces + start) * _KEY_BYTES, num * _KEY_BYTES, "<u8")


def _neighbours(
    found: np.ndarray,
    is_last: np.ndarray,
    keys: BinaryIO,
    next_band: int,
    num_pieces: int,
    capacity: int,
) -> np.ndarray:
    """Pairs of pieces that stand near each other in one bucket.

    Args:
        found: (K,) ascending keys of this band.
        is_last: (K,) whether a key ends its bucket.
        keys: all bands.
        next_band: whose keys order a bucket.
        num_pieces: rows.
        capacity: keys that fit into memory.

    Returns:
        (E,) packed pairs, ascending.
    """
    shared = ~is_last
    shared[1:] |= ~is_last[:-1]
    bucket = np.cumsum(is_last[shared])
    bucket -= is_last[shared]  # the last one belongs to its own
    row = (found[shared] & ((np.uint64(1) << _row_bits(num_pieces)) - np.uint64(1))).astype(
        np.int64
    )

    by_row = np.argsort(row)
    wanted = row[by_row]
    other = np.empty(len(row), np.uint64)
    start = done = 0
    for block in _blocks(keys, next_band, num_pieces, capacity):
        end = int(np.searchsorted(wanted, start + len(block)))
        other[by_row[done:end]] = block[wanted[done:end] - start] >> _row_bits(num_pieces)
        start, done = start + len(block), end
    order = np.lexsort((other, bucket))
    bucket, row, other = bucket[order], row[order], other[order]

    pairs = []
    for step in range(1, _REACH + 1):
        is_pair = bucket[step:] == bucket[:-step]
        if step > 1:  # a run of copies hangs together by its neighbours
            is_pair &= other[step:] != other[:-step]
        first, second = row[:-step][is_pair], row[step:][is_pair]
        pairs.append(np.minimum(first, second) * num_pieces + np.maximum(first, second))
    return np.sort(np.concatenate(pairs))


def _spread(packed: np.ndarray, num_pieces: int, files: Sequence[BinaryIO]) -> None:
    """Append packed pairs to the file of their first row."""
    edges = [num_pieces * part // len(files) * num_pieces for part in range(1, len(files))]
    for part, file in zip(np.split(packed, np.searchsorted(packed, edges)), files, strict=True):
        file.write(part.astype("<i8", copy=False).tobytes())


def _distinct(part: Path, memory_bytes: int) -> Iterator[np.ndarray]:
    """Packed pairs of a file, ascending and each once; in several runs where memory is short."""
    block = memory_bytes // 8 // 8 * 8
    distinct = np.zeros(0, np.int64)
    with part.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        for start in range(0, size, block):
            more = _read(file, start, min(block, size - start), "<i8")
            distinct = np.unique(np.concatenate([distinct, more]))
            if distinct.nbytes > block:
                yield distinct
                distinct = distinct[:0]
    yield distinct


def _verified(
    rows: BinaryIO, packed: np.ndarray, num_pieces: int, threshold: float, memory_bytes: int
) -> Iterator[np.ndarray]:
    """Those pairs that agree in enough of all hashes."""
    least_equal = threshold * NUM_HASHES - 1e-6  # so that a share of .25 needs no more than that
    batch = min(max(1, memory_bytes // _COMPARING_BYTES), _MAX_COMPARED)
    for start in range(0, len(packed), batch):
        pairs = np.stack(np.divmod(packed[start : start + batch], num_pieces), axis=1)
        needed, place = np.unique(pairs, return_inverse=True)
        hashes = _hashes_of(rows, needed)
        place = place.reshape(pairs.shape)
        num_equal = np.count_nonzero(hashes[place[:, 0]] == hashes[place[:, 1]], axis=1)
        if (is_copy := num_equal >= least_equal).any():
            yield pairs[is_copy]


def _hashes_of(rows: BinaryIO, needed: np.ndarray) -> np.ndarray:
    """(N, NUM_HASHES) hashes of some rows, given in ascending order."""
    hashes = np.empty((len(needed), NUM_HASHES), np.uint32)
    runs = np.split(np.arange(len(needed)), np.flatnonzero(np.diff(needed) > _GAP_ROWS) + 1)
    for run in runs:
        first, last = needed[run[0]], needed[run[-1]]
        block = _read(rows, int(first) * _ROW_BYTES, int(last - first + 1) * _ROW_BYTES, "<u4")
        hashes[run] = block.reshape(-1, NUM_HASHES)[needed[run] - first]
    return hashes


def _read(file: BinaryIO, start: int, num_bytes: int, dtype: str) -> np.ndarray:
    """Positioned read: of a memory map every page touched would count as memory of ours."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    file.seek(start)
    while view:
        num_read = file.readinto(view)  # type: ignore[attr-defined]
        assert num_read, f"{file.name} ends before byte {start + num_bytes:,}"
        view = view[num_read:]
    return np.frombuffer(data, dtype)
