"""Placed pieces to tars: the last step of a build, one job a shard."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.shards.bar_tokens import longest_bar
from meloformer.shards.copies import Kept, read_rows
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.known import KnownPieces
from meloformer.shards.manifest import SPLITS, ShardEntry, ShardSettings
from meloformer.shards.notes import read_note, write_note
from meloformer.shards.placing import PLACED_RECORD, Placed
from meloformer.shards.pool import Died, Run
from meloformer.shards.spill import read_piece
from meloformer.shards.staging import BuildStoppedError, Staging
from meloformer.shards.tars import COPY_RECORD, shard_stem, stored_bytes, write_shard

WRITING = "writing"

_CLUSTER = "cluster"


def cut_shards(sizes: np.ndarray, settings: ShardSettings) -> list[slice]:
    """Consecutive runs of pieces that each fit one tar.

    Args:
        sizes: (P,) bytes that each piece takes in a tar.
        settings: limits; a piece larger than a tar still gets one.

    >>> cut_shards(np.array([4, 4, 9, 1]), ShardSettings(bytes_per_shard=8))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    runs: list[slice] = []
    start = 0
    while start < len(sizes):
        limit = (ends[start - 1] if start else 0) + settings.bytes_per_shard
        fitting = int(np.searchsorted(ends, limit, side="right"))
        stop = max(min(fitting, start + settings.pieces_per_shard), start + 1)
        runs.append(slice(start, stop))
        start = stop
    return runs


def placed_facts(placed: Placed, spill: Path) -> Iterator[dict[str, Any]]:
    """Facts of every new piece, with its key, split, cluster, and the tokens of its longest bar."""
    for split in SPLITS:
        for block in read_rows(placed.records(split), PLACED_RECORD):
            for record in block:
                piece = read_piece(spill, record)
                yield json.loads(piece.facts_json) | {
                    "split": split,
                    _CLUSTER: record[_CLUSTER].decode(),
                    "piece": piece.key,
                    "longest_bar": longest_bar(piece.bar_starts),
                }


@dataclass(frozen=True)
class _ShardJob:
    """One tar to be written: a run of the placed pieces of a split."""

    split: str
    number: int
    first: int
    num_pieces: int

    @property
    def stem(self) -> str:
        return f"{self.split}/{shard_stem(self.number)}"


def write_splits(
    placed: Placed,
    kept: Kept,
    known: KnownPieces,
    spill: Path,
    staging: Staging,
    settings: ShardSettings,
    run: Run,
    on_progress: Callable[[str, int, int | None], None],
) -> dict[str, tuple[ShardEntry, ...]]:
    """Write every shard that is not written yet, behind those that the folder had.

    Raises:
        BuildStoppedError: a worker died while it wrote.
    """
    entries_folder = staging.work / "entries"
    entries_folder.mkdir(exist_ok=True)
    old: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    for number, entry in known.entries:
        old[SPLITS[number]].append(entry)
    for split in SPLITS:
        (staging.folder / split).mkdir(exist_ok=True)
    for entry in (entry for of_split in old.values() for entry in of_split):
        assert known.folder is not None, "known pieces lie in a folder"
        for name, _, _ in entry.files():
            _link(known.folder / name, staging.folder / name)
    jobs = [job for split in SPLITS for job in _jobs(placed, split, len(old[split]), settings)]
    done, total = 0, sum(job.num_pieces for job in jobs)
    on_progress(WRITING, 0, total)
    waiting = []
    for job in jobs:
        if _read_entry(entries_folder, job, staging.folder) is not None:
            done += job.num_pieces
        else:
            waiting.append(job)
    task = partial(
        _write_job,
        placed=placed,
        kept=kept,
        spill=spill,
        folder=staging.folder,
        entries=entries_folder,
    )
    for job, result in _run_few(task, waiting, run):
        if isinstance(result, Died):
            raise BuildStoppedError(
                f"a worker died while it wrote {job.stem}; this machine is probably out of memory: "
                "the same command with fewer --num_workers goes on where this one stopped"
            )
        done += job.num_pieces
        on_progress(WRITING, done, total)
    written: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    for job in jobs:
        found = _read_entry(entries_folder, job, staging.folder)
        if found is None:
            raise BuildStoppedError(
                f"{job.stem} was damaged since it was written; give the same command again, which "
                "writes it again, and check the disk"
            )
        written[job.split].append(found)
    return {split: (*old[split], *written[split]) for split in SPLITS}


def _run_few(
    task: "partial[None]", jobs: list[_ShardJob], run: Run
) -> Iterator[tuple[_ShardJob, Died | None]]:
    # To start workers takes longer than to write a few shards.
    if len(jobs) <= len(SPLITS):
        return ((job, task(job)) for job in jobs)
    return run(task, jobs)


def _jobs(placed: Placed, split: str, first: int, settings: ShardSettings) -> Iterator[_ShardJob]:
    """Shards of a split, numbered from `first` on."""
    sizes = [np.zeros(0, np.int64)]
    for block in read_rows(placed.records(split), PLACED_RECORD):
        facts_size = block["facts_size"] + _EXTRA_BYTES
        sizes.append(stored_bytes(block["npy_size"]) + stored_bytes(facts_size))
    for number, part in enumerate(cut_shards(np.concatenate(sizes), settings)):
        yield _ShardJob(split, first + number, part.start, part.stop - part.start)


def _write_job(
    job: _ShardJob, *, placed: Placed, kept: Kept, spill: Path, folder: Path, entries: Path
) -> None:
    records = np.fromfile(
        placed.records(job.split),
        PLACED_RECORD,
        job.num_pieces,
        offset=job.first * PLACED_RECORD.itemsize,
    )
    signatures = np.memmap(kept.signatures, np.dtype(("<u4", (NUM_HASHES,))), mode="r")
    copies = np.zeros(len(records), COPY_RECORD)
    copies["tune"], copies[_CLUSTER] = records["tune"], records[_CLUSTER]
    copies["signature"] = signatures[records["signature_row"]]
    pieces = (
        read_piece(spill, record, {_CLUSTER: record[_CLUSTER].decode()}) for record in records
    )
    entry = write_shard(folder, job.stem, pieces, copies)
    write_note(_entry_path(entries, job), asdict(entry))


# What `cluster` adds to the facts of every piece.
_EXTRA_BYTES = len(f', "{_CLUSTER}": ""') + PLACED_RECORD[_CLUSTER].itemsize


def _entry_path(folder: Path, job: _ShardJob) -> Path:
    return folder / f"{job.split}-{shard_stem(job.number)}.json"


def _read_entry(entries: Path, job: _ShardJob, folder: Path) -> ShardEntry | None:
    """What was written of a shard; None where it is not, or a loss of power has cut it short."""
    try:
        entry = ShardEntry(**read_note(_entry_path(entries, job)))
        sizes = [(folder / name).stat().st_size for name, _, _ in entry.files()]
    except (TypeError, FileNotFoundError):
        return None
    return entry if sizes == [size for _, size, _ in entry.files()] else None


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no such links."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.copyfile(source, unfinished)
        unfinished.rename(target)
