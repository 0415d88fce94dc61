"""MIDI files to a shard folder: convert, drop exact copies, place near copies, write.

What is written depends on the files and the settings alone: chunks of input are cut the same way
for any number of workers, and pieces are put in order by their hash. Every step leaves its result
on disk under its name only when it is whole, so that a killed build goes on.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from meloformer.errors import ShardError
from meloformer.shards.card import data_card
from meloformer.shards.chunks import convert_chunks, cut_chunks
from meloformer.shards.copies import Kept, separate_copies, signed
from meloformer.shards.guard import FileLimits
from meloformer.shards.known import KnownPieces
from meloformer.shards.left_out import JOINS_TWO_SPLITS, LeftOut, write_rejected
from meloformer.shards.manifest import (
    CARD_NAME,
    FORMAT_VERSION,
    InputEntry,
    Manifest,
    ShardSettings,
    flat_settings,
)
from meloformer.shards.notes import read_note, write_note
from meloformer.shards.output import check_append, check_output
from meloformer.shards.placing import Placed, place_pieces
from meloformer.shards.pool import Run
from meloformer.shards.report import write_report
from meloformer.shards.sources import Source, Survey
from meloformer.shards.spill import (
    ChunkTable,
    load_chunk,
)
from meloformer.shards.staging import BuildStoppedError, Staging, staged
from meloformer.shards.writing import placed_facts, write_splits
from meloformer.tokens import vocabulary

# Called with what is done at the moment, how much of it, and of how much (None: not known yet).
OnProgress = Callable[[str, int, int | None], None]

# What a build is at: files that an earlier try has converted, files, all at once, pieces.
FOUND = "converted before"
CONVERTING = "converting"
SORTING = "sorting"


@dataclass(frozen=True)
class Rejection:
    """How many files a reason took, and the first of them."""

    reason: str
    count: int
    path: str
    detail: str


class NothingUsableError(ShardError):
    """All files were rejected.

    Args:
        name: of the input.
        num_files: of it.
        rejections: the reasons, the most frequent first.
    """

    def __init__(self, name: str, num_files: int, rejections: Sequence[Rejection]) -> None:
        reasons = ", ".join(f"{found.count} {found.reason}" for found in rejections)
        super().__init__(
            f"no usable MIDI in {name}: all {num_files} files were rejected ({reasons}); give "
            "another --midi, or other limits (--help names them with their defaults)"
        )
        self.rejections = rejections


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a build goes about it; nothing here changes what is written.

    Args:
        overwrite: replace a shard folder that stands at the output, or an unfinished build.
        append: add to the folder that stands at the output.
        limits: of each file.
        report: folder for a report on what would be built; then nothing is built.
        on_progress: see OnProgress.
    """

    overwrite: bool = False
    append: bool = False
    limits: FileLimits = field(default_factory=FileLimits)
    report: Path | None = None
    on_progress: OnProgress = lambda what, done, total: None


def build_shards(
    source: Source,
    output: Path,
    settings: ShardSettings,
    *,
    run: Run,
    options: BuildOptions | None = None,
) -> Manifest | None:
    """Make a shard folder, or add to one.

    Args:
        source: MIDI files.
        output: the folder; it appears only when it is complete.
        settings: what decides the bytes, next to the files.
        run: engine; the bytes do not depend on it.
        options: see BuildOptions.

    Returns:
        What manifest.json says; None where only a report was asked for.

    Raises:
        ShardError: no MIDI, no usable MIDI, a damaged archive, or an output that is taken or
            cannot be written.
    """
    options = options or BuildOptions()
    survey = source.survey()
    note = {
        "format_version": FORMAT_VERSION,
        "tokenizer": vocabulary.fingerprint(),
        **flat_settings(settings),
        "input": source.name,
        "fingerprint": survey.fingerprint,
        "append": options.append,
        "file_seconds": options.limits.file_seconds,
        "file_megabytes": options.limits.file_megabytes,
    }
    if options.report is not None:
        _write_report(source, survey, settings, note, run, options, options.report)
        return None
    with staged(output, note, overwrite=options.overwrite) as staging:
        if staging.was_finished() or staging.is_complete():
            return staging.put_in_place()
        if options.append:
            check_append(output, settings, source.name, survey)
            known = KnownPieces.of(output)
        else:
            check_output(output, settings, source.name, survey, overwrite=options.overwrite)
            known = KnownPieces.none()
        manifest = _build(source, survey, known, settings, staging, run, options)
        manifest.save(staging.folder)
        return staging.put_in_place()


def _write_report(
    source: Source,
    survey: Survey,
    settings: ShardSettings,
    note: dict[str, Any],
    run: Run,
    options: BuildOptions,
    folder: Path,
) -> None:
    """Look at what would be built; what was converted for it is thrown away."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"--report {folder} cannot be made ({error}); give another") from error
    with staged(folder / "pieces", note, overwrite=True) as staging:
        sorted_ = _sort(source, survey, KnownPieces.none(), settings, staging.work, run, options)
        pieces = placed_facts(sorted_.placed, sorted_.spill)
        num_copies = sorted_.left_out.num_copies
        write_report(folder, pieces, sorted_.rejected, num_copies, title=source.name)
        staging.discard()


@dataclass(frozen=True)
class _Sorted:
    """All files converted, and every piece in its place; nothing is in a shard yet."""

    spill: Path
    tables: Callable[[], Iterator[ChunkTable]]
    licences: tuple[str, ...]
    totals: "_Totals"
    kept: Kept
    placed: Placed
    left_out: LeftOut

    @property
    def rejected(self) -> Counter[str]:
        """Files by reason."""
        return +(self.totals.rejected + Counter({JOINS_TWO_SPLITS: self.left_out.num_joining}))


def _sort(
    source: Source,
    survey: Survey,
    known: KnownPieces,
    settings: ShardSettings,
    work: Path,
    run: Run,
    options: BuildOptions,
) -> _Sorted:
    spill = work / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    tables, licences = _convert(source, survey, spill, settings, run, options)
    totals = _Totals.of(tables)
    if not totals.num_pieces and not known.num_pieces:
        raise _nothing_usable(source, totals, tables)
    options.on_progress(SORTING, 0, 1)
    rows = chain(known.keys(), (signed(table) for table in tables()))
    kept = separate_copies(rows, known.num_pieces + totals.num_pieces, work)
    placed = place_pieces(kept, known, settings, work)
    options.on_progress(SORTING, 1, 1)
    left_out = LeftOut(kept, placed, known, spill)
    return _Sorted(spill, tables, licences, totals, kept, placed, left_out)


def _build(
    source: Source,
    survey: Survey,
    known: KnownPieces,
    settings: ShardSettings,
    staging: Staging,
    run: Run,
    options: BuildOptions,
) -> Manifest:
    found = _sort(source, survey, known, settings, staging.work, run, options)
    kept, placed, spill = found.kept, found.placed, found.spill
    splits = write_splits(placed, kept, known, spill, staging, settings, run, options.on_progress)
    unusable = (line for table in found.tables() for line in table.rejected_lines)
    write_rejected(staging.folder, known.folder, chain(unusable, found.left_out.lines()))
    base = known.manifest()
    made_from = InputEntry(
        name=source.name,
        fingerprint=survey.fingerprint,
        files=found.totals.num_files,
        licences=found.licences,
        columns=survey.columns,
    )
    manifest = Manifest(
        settings=settings,
        inputs=(*(base.inputs if base else ()), made_from),
        num_in=found.totals.num_files + (base.num_in if base else 0),
        num_duplicates=found.left_out.num_copies + (base.num_duplicates if base else 0),
        rejected=dict(+(found.rejected + Counter(base.rejected if base else {}))),
        quantised=dict(found.totals.counts + Counter(base.quantised if base else {})),
        num_clusters=placed.num_clusters,
        num_near_copies=placed.num_near_copies,
        splits=splits,
        tokenizer_fingerprint=vocabulary.fingerprint(),
    )
    (staging.folder / CARD_NAME).write_text(data_card(manifest), encoding="utf-8")
    return manifest


def _convert(
    source: Source,
    survey: Survey,
    spill: Path,
    settings: ShardSettings,
    run: Run,
    options: BuildOptions,
) -> tuple[Callable[[], Iterator[ChunkTable]], tuple[str, ...]]:
    """Convert what is not converted yet; a walk through all chunks, and the licences met."""
    done_path = spill / "done.json"
    if (done := _read_done(done_path)) is None or not _are_whole(spill, done[0]):
        num_done = num_found = 0
        options.on_progress(CONVERTING, 0, survey.num_files)

        def on_done(num_files: int) -> None:
            nonlocal num_done
            num_done += num_files
            left = None if survey.num_files is None else survey.num_files - num_found
            options.on_progress(CONVERTING, num_done, left)

        def on_found(num_files: int) -> None:
            nonlocal num_found
            num_found += num_files
            options.on_progress(FOUND, num_found, survey.num_files)

        num_chunks = convert_chunks(
            cut_chunks(source.files()),
            spill,
            settings,
            run=run,
            limits=options.limits,
            on_found=on_found,
            on_done=on_done,
        )
        done = num_chunks, source.licences()
        write_note(done_path, done)
    num_all, licences = done

    def tables() -> Iterator[ChunkTable]:
        for chunk in range(num_all):
            table = load_chunk(spill, chunk)
            if table is None:
                done_path.unlink()
                raise BuildStoppedError(
                    f"chunk {chunk} of {spill} was damaged since it was written; give the same "
                    "command again, which converts its files again, and check the disk"
                )
            yield table

    return tables, licences


def _read_done(path: Path) -> tuple[int, tuple[str, ...]] | None:
    """Number of chunks, and the licences met; None where the conversion has to be gone through."""
    match read_note(path):
        case [int(num_chunks), list(licences)]:
            return num_chunks, tuple(licences)
    return None


def _are_whole(spill: Path, num_chunks: int) -> bool:
    """Nothing of an earlier try's chunks is lost: a note may outlive a loss of power, and not they.

    Their files are not synced one by one, which would take longer than to read them again.
    """
    chunks = (load_chunk(spill, chunk, verify=True) for chunk in range(num_chunks))
    return all(chunk is not None for chunk in chunks)


@dataclass(frozen=True)
class _Totals:
    """Sums over all chunks."""

    num_files: int
    num_pieces: int
    rejected: Counter[str]
    counts: Counter[str]

    @classmethod
    def of(cls, tables: Callable[[], Iterator[ChunkTable]]) -> "_Totals":
        num_files = num_pieces = 0
        rejected: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for table in tables():
            num_files += table.num_files
            num_pieces += len(table.records)
            rejected.update(table.rejected)
            counts.update(table.counts)
        return cls(num_files, num_pieces, rejected, counts)


def _nothing_usable(
    source: Source, totals: _Totals, tables: Callable[[], Iterator[ChunkTable]]
) -> NothingUsableError:
    first: dict[str, Rejection] = {}
    for entry in (json.loads(line) for table in tables() for line in table.rejected_lines):
        reason = entry["reason"]
        count = totals.rejected[reason]
        first.setdefault(reason, Rejection(reason, count, entry["path"], entry["detail"]))
        if len(first) == len(totals.rejected):
            break
    rejections = sorted(first.values(), key=lambda rejection: (-rejection.count, rejection.reason))
    return NothingUsableError(source.name, totals.num_files, rejections)
