"""Proving a whole shard folder: every shard, and what only all of them together can show.

What is known of all pieces lies on disk, sorted by hash, so memory does not grow with their number.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.bucket_sort import sort_by_hash
from meloformer.shards.content import split_of
from meloformer.shards.manifest import CARD_NAME, MANIFEST_NAME, REJECTED_NAME, SPLITS, Manifest
from meloformer.shards.pool import Died, run_in_pool
from meloformer.shards.storage import LocalFolder, Storage
from meloformer.shards.verify_shard import (
    CHECKED_RECORD,
    ShardCheck,
    ShardJob,
    check_shard,
    differences,
    is_key,
)

DUPLICATE = "duplicate"
_ROWS_AT_ONCE = 1 << 16
_NO_SHARD = -1  # of a key that rejected.jsonl names


def find_faults(
    storage: Storage,
    manifest: Manifest,
    *,
    splits: Sequence[str] = SPLITS,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[str]:
    """Everything that is wrong with a folder, one line each; none where all is well.

    Args:
        storage: where it lies.
        manifest: its own, which adds up.
        splits: whose shards are read; where it is not all of them, nothing is said of what only
            all of them together show.
        num_workers: processes; the faults and their order do not depend on it.
        on_progress: called with (pieces done, pieces in all).
    """
    is_whole = set(splits) == set(SPLITS)
    if is_whole and isinstance(storage, LocalFolder):
        yield from _foreign_files(storage.path, manifest)
    jobs = [
        ShardJob(number, split, entry)
        for number, (split, entry) in enumerate(
            (split, entry) for split in SPLITS for entry in manifest.splits[split]
        )
        if split in splits
    ]
    with TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows"
        with rows.open("wb") as file:
            if is_whole:
                yield from _check_rejected(
                    storage, manifest, lambda keys: file.write(keys.tobytes())
                )
            done, total = 0, sum(job.entry.pieces for job in jobs)
            for job, check in _checks(storage, jobs, num_workers):
                yield from check.faults
                file.write(check.rows.tobytes())
                done += job.entry.pieces
                on_progress(done, total)
        yield from _faults_of_keys(rows, storage, manifest)
        if is_whole:
            yield from _faults_of_clusters(rows, storage, manifest)


def _foreign_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files that nothing lists; those that are listed and missing are named with their shard."""
    listed = {MANIFEST_NAME, REJECTED_NAME, CARD_NAME}
    listed |= {name for shard in manifest.shards() for name, _, _ in shard.files()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in listed:
            yield f"{path}: found a file that the manifest does not list; move it away"


def _checks(
    storage: Storage, jobs: list[ShardJob], num_workers: int
) -> Iterator[tuple[ShardJob, ShardCheck]]:
    """Checks of all shards, in their order."""
    task = partial(check_shard, storage=storage)
    if num_workers == 1 or len(jobs) < 2:  # to start a worker takes longer than a small shard
        yield from ((job, task(job)) for job in jobs)
        return
    ready: dict[int, tuple[ShardJob, ShardCheck]] = {}
    order = iter([job.number for job in jobs])
    awaited = next(order, None)
    for job, result in run_in_pool(task, jobs, num_workers=min(num_workers, len(jobs))):
        ready[job.number] = (
            job,
            _not_checked(storage, job) if isinstance(result, Died) else result,
        )
        while awaited in ready:
            yield ready.pop(awaited)
            awaited = next(order, None)


def _not_checked(storage: Storage, job: ShardJob) -> ShardCheck:
    fault = (
        f"{storage.name}/{job.entry.file}: a worker died while it was checked; this machine is "
        "probably out of memory: try fewer --num_workers"
    )
    return ShardCheck([fault], np.zeros(0, CHECKED_RECORD))


def _check_rejected(
    storage: Storage, manifest: Manifest, keep: Callable[[np.ndarray], object]
) -> Iterator[str]:
    """Compare rejected.jsonl with the counts of the manifest.

    Args:
        storage: where it lies.
        manifest: what it should say.
        keep: takes CHECKED_RECORD of the keys that copies are said to repeat.
    """
    place = f"{storage.name}/{REJECTED_NAME}"
    reasons: Counter[str] = Counter()
    try:
        with _open_rejected(storage) as lines:
            while batch := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
                reasons.update(entry["reason"] for entry in batch)
                keys = [entry["key"] for entry in batch if entry["reason"] == DUPLICATE]
                yield from (f"{place}: {key!r} is no key" for key in keys if not is_key(key))
                rows = np.zeros(sum(map(is_key, keys)), CHECKED_RECORD)
                rows["key"] = [key.encode() for key in keys if is_key(key)]
                rows["shard"] = _NO_SHARD
                keep(rows)
    except (ShardError, OSError, ValueError, KeyError, TypeError) as error:
        yield f"{place} cannot be read ({type(error).__name__}: {error})"
        return
    stated = manifest.rejected | {DUPLICATE: manifest.num_duplicates}
    yield from differences(
        f"{place}: ",
        {
            reason: (reasons[reason], stated.get(reason, 0))
            for reason in sorted(stated.keys() | reasons.keys())
        },
    )


def _open_rejected(storage: Storage) -> BinaryIO:
    if isinstance(storage, LocalFolder):  # line by line, however many there are
        return (storage.path / REJECTED_NAME).open("rb")
    return io.BytesIO(storage.read_bytes(REJECTED_NAME))


def _faults_of_keys(rows: Path, storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Pieces that stand twice, and copies of pieces that stand nowhere."""
    names = [shard.file for shard in manifest.shards()]
    for ordered in _sorted(rows, "key"):
        is_piece = ordered["shard"] != _NO_SHARD
        pieces = ordered[is_piece]
        again = np.flatnonzero(pieces["key"][1:] == pieces["key"][:-1])
        for place in again.tolist():
            first, second = (names[pieces["shard"][n]] for n in (place, place + 1))
            yield (
                f"{storage.name}: piece {pieces['key'][place].decode()} stands in {first} and in "
                f"{second}"
            )
        missing = np.setdiff1d(ordered["key"][~is_piece], pieces["key"])
        if len(pieces) or not is_piece.all():
            for key in missing.tolist():
                yield (
                    f"{storage.name}/{REJECTED_NAME}: a copy repeats {key.decode()}, which is no "
                    "piece of the shards"
                )


def _faults_of_clusters(rows: Path, storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Clusters that cross the splits, have no name, or stand where no piece of theirs belongs."""
    num_clusters = num_near_copies = 0
    for ordered in _sorted(rows, "cluster"):
        pieces = ordered[ordered["shard"] != _NO_SHARD]
        if not len(pieces):
            continue
        names, first, sizes = np.unique(pieces["cluster"], return_index=True, return_counts=True)
        num_clusters += int(np.count_nonzero(sizes > 1))
        num_near_copies += int(sizes[sizes > 1].sum())
        lowest = np.minimum.reduceat(pieces["split"], first)
        highest = np.maximum.reduceat(pieces["split"], first)
        has_name = np.logical_or.reduceat(pieces["key"] == pieces["cluster"], first)
        belongs = split_of(pieces["tune"], manifest.settings) == pieces["split"]
        is_home = np.logical_or.reduceat(belongs, first)
        for number in np.flatnonzero((lowest != highest) | ~has_name | ~is_home).tolist():
            place = f"{storage.name}: cluster {names[number].decode()}"
            if lowest[number] != highest[number]:
                yield f"{place}: found in {SPLITS[lowest[number]]} and {SPLITS[highest[number]]}"
            if not has_name[number]:
                yield f"{place}: the piece that names it is not among its {sizes[number]} pieces"
            if not is_home[number]:
                tune = pieces["tune"][first[number] : first[number] + 1]
                wanted = SPLITS[split_of(tune, manifest.settings)[0]]
                yield f"{place}: found in split {SPLITS[lowest[number]]}, expected {wanted}"
    yield from differences(
        f"{storage.name}/{MANIFEST_NAME}: ",
        {
            "clusters of near copies": (num_clusters, manifest.num_clusters),
            "pieces in them": (num_near_copies, manifest.num_near_copies),
        },
    )


def _sorted(rows: Path, field: str) -> Iterator[np.ndarray]:
    """All rows; equal values of the field stand in one batch."""
    num_rows = rows.stat().st_size // CHECKED_RECORD.itemsize

    def batches() -> Iterator[np.ndarray]:
        with rows.open("rb") as file:
            while data := file.read(_ROWS_AT_ONCE * CHECKED_RECORD.itemsize):
                yield np.frombuffer(data, CHECKED_RECORD)

    yield from sort_by_hash(batches(), field, rows.with_name(f"by_{field}"), num_rows)
