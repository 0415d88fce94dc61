"""Proving a whole shard folder: every shard, and what only all of them together can show.

What is known of all pieces lies on disk, sorted by hash, so memory does not grow with their number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from meloformer.shards.bucket_sort import sort_by_hash
from meloformer.shards.content import split_of
from meloformer.shards.manifest import CARD_NAME, MANIFEST_NAME, REJECTED_NAME, SPLITS, Manifest
from meloformer.shards.pool import Died, run_in_pool
from meloformer.shards.storage import LocalFolder, Storage
from meloformer.shards.verify_manifest import (
    check_card,
    check_quantised,
    check_rejected,
    check_totals,
)
from meloformer.shards.verify_shard import (
    CHECKED_RECORD,
    NO_SHARD,
    ShardCheck,
    ShardJob,
    check_shard,
)

_ROWS_AT_ONCE = 1 << 16


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
    yield from check_totals(storage, manifest)
    if is_whole:
        yield from check_card(storage, manifest)
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
        quantised: Counter[str] = Counter()
        num_incomplete = 0
        with rows.open("wb") as file:
            if is_whole:
                yield from check_rejected(
                    storage, manifest, lambda keys: file.write(keys.tobytes())
                )
            done, total = 0, sum(job.entry.pieces for job in jobs)
            for job, check in _checks(storage, jobs, num_workers):
                yield from check.faults
                file.write(check.rows.tobytes())
                quantised.update(check.quantised)
                num_incomplete += not check.is_complete
                done += job.entry.pieces
                on_progress(done, total)
        all_read = is_whole and num_incomplete == 0
        yield from _faults_of_keys(rows, storage, manifest, all_read=all_read)
        if is_whole:
            yield from _faults_of_clusters(rows, storage, manifest, all_read=all_read)
        if all_read:
            yield from check_quantised(storage, manifest, quantised)
        elif is_whole:
            yield (
                f"{storage.name}: sums over all pieces, clusters and what copies repeat were not "
                f"compared, since {num_incomplete} of {len(jobs)} shards cannot be read through"
            )


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


def _faults_of_keys(
    rows: Path, storage: Storage, manifest: Manifest, *, all_read: bool
) -> Iterator[str]:
    """Pieces that stand twice, and, where all were read, copies of pieces that stand nowhere."""
    names = [shard.file for shard in manifest.shards()]
    for ordered in _sorted(rows, "key"):
        is_piece = ordered["shard"] != NO_SHARD
        pieces = ordered[is_piece]
        again = np.flatnonzero(pieces["key"][1:] == pieces["key"][:-1])
        for place in again.tolist():
            first, second = (names[pieces["shard"][n]] for n in (place, place + 1))
            yield (
                f"{storage.name}: piece {pieces['key'][place].decode()} stands in {first} and in "
                f"{second}"
            )
        missing = np.setdiff1d(ordered["key"][~is_piece], pieces["key"])
        if all_read:
            for key in missing.tolist():
                yield (
                    f"{storage.name}/{REJECTED_NAME}: a copy repeats {key.decode()}, which is no "
                    "piece of the shards"
                )


def _faults_of_clusters(
    rows: Path, storage: Storage, manifest: Manifest, *, all_read: bool
) -> Iterator[str]:
    """Clusters that cross the splits, have no name, or stand where no piece of theirs belongs.

    Where not all pieces were read, only the first of these is known.
    """
    files = [shard.file for shard in manifest.shards()]
    num_clusters = num_near_copies = 0
    for ordered in _sorted(rows, "cluster"):
        pieces = ordered[ordered["shard"] != NO_SHARD]
        if not len(pieces):
            continue
        names, first, sizes = np.unique(pieces["cluster"], return_index=True, return_counts=True)
        num_clusters += int(np.count_nonzero(sizes > 1))
        num_near_copies += int(sizes[sizes > 1].sum())
        lowest = np.minimum.reduceat(pieces["split"], first)
        highest = np.maximum.reduceat(pieces["split"], first)
        has_name = np.logical_or.reduceat(pieces["key"] == pieces["cluster"], first) | (
            not all_read
        )
        belongs = split_of(pieces["tune"], manifest.settings) == pieces["split"]
        is_home = np.logical_or.reduceat(belongs, first) | (not all_read)
        for number in np.flatnonzero((lowest != highest) | ~has_name | ~is_home).tolist():
            file = files[pieces["shard"][first[number]]]
            place = f"{storage.name}/{file}: cluster {names[number].decode()}"
            if lowest[number] != highest[number]:
                yield f"{place}: found in {SPLITS[lowest[number]]} and {SPLITS[highest[number]]}"
            if not has_name[number]:
                yield f"{place}: the piece that names it is not among its {sizes[number]} pieces"
            if not is_home[number]:
                tune = pieces["tune"][first[number] : first[number] + 1]
                wanted = SPLITS[split_of(tune, manifest.settings)[0]]
                yield f"{place}: found in split {SPLITS[lowest[number]]}, expected {wanted}"
    found = {"clusters": num_clusters, "pieces": num_near_copies}
    stated = {"clusters": manifest.num_clusters, "pieces": manifest.num_near_copies}
    yield from (
        f"{storage.name}/{MANIFEST_NAME}: near_copies: found {name} = {stated[name]}, its pieces "
        f"give {found[name]}"
        for name in found
        if all_read and found[name] != stated[name]
    )


def _sorted(rows: Path, field: str) -> Iterator[np.ndarray]:
    """All rows; equal values of the field stand in one batch."""
    num_rows = rows.stat().st_size // CHECKED_RECORD.itemsize

    def batches() -> Iterator[np.ndarray]:
        with rows.open("rb") as file:
            while data := file.read(_ROWS_AT_ONCE * CHECKED_RECORD.itemsize):
                yield np.frombuffer(data, CHECKED_RECORD)

    yield from sort_by_hash(batches(), field, rows.with_name(f"by_{field}"), num_rows)
