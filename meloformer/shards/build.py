"""MIDI files to a shard folder: convert, drop exact copies, split by content, write.

What is written depends on the files and the settings alone: chunks of input are cut the same way
for any number of workers, and pieces are put in order by their hash.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.chunks import ChunkResult, convert_chunks, cut_chunks
from meloformer.shards.content import split_of
from meloformer.shards.manifest import (
    REJECTED_NAME,
    SPLITS,
    InputEntry,
    Manifest,
    ShardEntry,
    ShardSettings,
)
from meloformer.shards.pool import Died, run_in_pool
from meloformer.shards.sources import Source
from meloformer.shards.spill import (
    RECORD,
    piece_source,
    read_piece,
    rejected_line,
    rejected_lines,
)
from meloformer.shards.staging import check_output, staged
from meloformer.shards.tars import shard_stem, stored_bytes, write_shard
from meloformer.tokens import vocabulary

_SPILL_NAME = "spill"

# Called with (files done, files in all or None) as the build goes on.
OnProgress = Callable[[int, int | None], None]


def build_shards(
    source: Source,
    output: Path,
    settings: ShardSettings,
    *,
    num_workers: int,
    overwrite: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Manifest:
    """Make a shard folder.

    Args:
        source: MIDI files.
        output: the folder; it appears only when it is complete.
        settings: what decides the bytes, next to the files.
        num_workers: processes; the bytes do not depend on it.
        overwrite: replace a shard folder that stands at `output`.
        on_progress: see OnProgress.

    Returns:
        What manifest.json says.

    Raises:
        ShardError: no MIDI, no usable MIDI, a damaged archive, or an output that is taken or
            cannot be written.
    """
    survey = source.survey()
    made_from = InputEntry(name=source.name, fingerprint=survey.fingerprint)
    check_output(output, settings, made_from, overwrite=overwrite)
    with staged(output, overwrite=overwrite) as folder:
        spill = folder / _SPILL_NAME
        spill.mkdir()
        results: list[ChunkResult] = []
        num_in = 0
        for result in convert_chunks(
            cut_chunks(source.files()), spill, settings, num_workers=num_workers
        ):
            results.append(result)
            num_in += len(result.records) + result.rejected.total()
            on_progress(num_in, survey.num_files)
        results.sort(key=lambda result: result.number)
        rejected = sum((result.rejected for result in results), Counter[str]())
        records = np.concatenate([np.zeros(0, RECORD), *(result.records for result in results)])
        if len(records) == 0:
            raise _nothing_usable(source, rejected, next(rejected_lines(spill, len(results))))
        kept, copies = separate_copies(records, partial(piece_source, spill))
        with (folder / REJECTED_NAME).open("w", encoding="utf-8") as file:
            file.writelines(rejected_lines(spill, len(results)))
            file.writelines(_copy_lines(copies, spill))
        manifest = Manifest(
            settings=settings,
            source=made_from,
            num_in=num_in,
            num_duplicates=len(copies),
            rejected=dict(rejected),
            quantised=dict(sum((result.counts for result in results), Counter[str]())),
            splits=_write_splits(kept, spill, folder, settings, num_workers),
            tokenizer_fingerprint=vocabulary.fingerprint(),
        )
        shutil.rmtree(spill)
        manifest.save(folder)
    return manifest


def _nothing_usable(source: Source, rejected: Counter[str], first: str) -> ShardError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common(5))
    return ShardError(
        f"no usable MIDI in {source.name}: all {rejected.total()} files were rejected ({reasons}), "
        f"the first as {first.strip()}; give another --midi"
    )


@dataclass(frozen=True, eq=False)
class Copy:
    """A piece that repeats another note for note, each as one row of spill.RECORD."""

    record: Any
    repeats: Any


def separate_copies(
    records: np.ndarray, name_of: Callable[[Any], str]
) -> tuple[np.ndarray, list[Copy]]:
    """Keep one piece of each key: the one whose file has the smallest name.

    Args:
        records: (N,) spill.RECORD, in the order of the input.
        name_of: name of a record's file; asked for copies only.

    Returns:
        (pieces kept in the order of their keys, the others).
    """
    ordered = records[np.argsort(records["key"], kind="stable")]
    _, first, count = np.unique(ordered["key"], return_index=True, return_counts=True)
    chosen = first.copy()
    copies: list[Copy] = []
    for group in np.flatnonzero(count > 1):
        members = range(first[group], first[group] + count[group])
        # A list may name one file twice: then the first mention stays.
        by_name = sorted(members, key=lambda member: (name_of(ordered[member]), member))
        chosen[group] = by_name[0]
        copies += [Copy(ordered[member], ordered[by_name[0]]) for member in by_name[1:]]
    return ordered[chosen], copies


def _copy_lines(copies: list[Copy], spill: Path) -> Iterator[str]:
    for copy in copies:
        yield rejected_line(
            {
                "path": piece_source(spill, copy.record),
                "reason": "duplicate",
                "repeats": piece_source(spill, copy.repeats),
                "key": copy.repeats["key"].decode(),
            }
        )


def cut_shards(sizes: np.ndarray, settings: ShardSettings) -> list[slice]:
    """Consecutive runs of pieces that each fit one tar.

    Args:
        sizes: (P,) bytes that each piece takes in a tar.
        settings: limits; a piece larger than a tar still gets one.

    >>> cut_shards(np.array([4, 4, 9, 1]), ShardSettings(bytes_per_shard=8))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    ends = np.cumsum(sizes)
    runs: list[slice] = []
    start = 0
    while start < len(sizes):
        limit = (ends[start - 1] if start else 0) + settings.bytes_per_shard
        fitting = int(np.searchsorted(ends, limit, side="right"))
        stop = max(min(fitting, start + settings.pieces_per_shard), start + 1)
        runs.append(slice(start, stop))
        start = stop
    return runs


@dataclass(frozen=True, eq=False)
class _ShardJob:
    """One tar to be written."""

    split: str
    number: int
    records: np.ndarray


def _write_splits(
    records: np.ndarray, spill: Path, folder: Path, settings: ShardSettings, num_workers: int
) -> dict[str, tuple[ShardEntry, ...]]:
    split = split_of(records["tune"], settings)
    jobs: list[_ShardJob] = []
    for index, name in enumerate(SPLITS):
        (folder / name).mkdir()
        of_split = records[split == index]
        sizes = stored_bytes(of_split["npy_size"]) + stored_bytes(of_split["facts_size"])
        runs = cut_shards(sizes, settings)
        jobs += [_ShardJob(name, number, of_split[run]) for number, run in enumerate(runs)]
    task = partial(_write_job, spill=spill, folder=folder)
    # To start workers takes longer than to write a few shards.
    results: Iterable[tuple[_ShardJob, ShardEntry | Died]] = (
        ((job, task(job)) for job in jobs)
        if len(jobs) <= len(SPLITS)
        else run_in_pool(task, jobs, num_workers=min(num_workers, len(jobs)))
    )
    written: dict[tuple[str, int], ShardEntry] = {}
    for job, entry in results:
        if isinstance(entry, Died):
            raise ShardError(
                f"a worker died while it wrote {job.split}/{shard_stem(job.number)}; this machine "
                "is probably out of memory: try fewer --num_workers"
            )
        written[job.split, job.number] = entry
    return {
        name: tuple(entry for (of, _), entry in sorted(written.items()) if of == name)
        for name in SPLITS
    }


def _write_job(job: _ShardJob, *, spill: Path, folder: Path) -> ShardEntry:
    pieces = (read_piece(spill, record) for record in job.records)
    return write_shard(folder, f"{job.split}/{shard_stem(job.number)}", pieces)
