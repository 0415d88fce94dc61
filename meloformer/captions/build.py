"""Captions of a whole shard folder: streamed, by many processes, the same bytes for any number."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from meloformer.captions.caption_set import (
    FORMAT_NAME,
    FORMAT_VERSION,
    facts_path,
    read_facts,
)
from meloformer.captions.labels import Labels, load_labels
from meloformer.captions.locations import ByLocation
from meloformer.captions.patterns import held_out_names, patterns_sum
from meloformer.captions.pieces import PiecesDone, PiecesJob, caption_pieces
from meloformer.captions.settings import CaptionSettings
from meloformer.captions.user_captions import load_user_captions
from meloformer.errors import ConfigError
from meloformer.shards.manifest import SPLITS
from meloformer.shards.notes import sync_folder, write_note
from meloformer.shards.pool import Died, local_engine
from meloformer.shards.reader import ShardFolder

_PIECES_PER_JOB = 32

OnProgress = Callable[[int, int], None]


def build_captions(
    data: str,
    output: Path,
    settings: CaptionSettings,
    *,
    num_workers: int = 1,
    overwrite: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Any]:
    """Write `captions.jsonl` and the facts beside it; both are whole, or nothing is there.

    Args:
        data: shard folder, or its URL.
        output: captions.jsonl.
        settings: what is written.
        num_workers: processes; 1 works in this one.
        overwrite: replace another caption set.
        on_progress: told of pieces done, of how many.

    Returns:
        The facts, as `caption_set.read_facts` reads them.

    Raises:
        ConfigError: something else stands at `output`, a file of the user's is wrong, or nothing
            of it fits any piece.
        ShardError: `data` is no shard folder, or damaged.
    """
    folder = ShardFolder.open(data)
    if not folder.manifest.num_pieces:
        raise ConfigError(f"--data {data}: found no piece in it; make other shards")
    labels = load_labels(settings.labels)
    user: ByLocation[tuple[str, str]] = ByLocation(())
    if settings.user_captions is not None:
        user = load_user_captions(settings.user_captions)
    facts: dict[str, Any] = {
        "name": FORMAT_NAME,
        "format": FORMAT_VERSION,
        "settings": settings.to_json(),
        "shards_manifest_sha256": folder.manifest_sha256,
        "patterns_sha256": patterns_sum(settings.languages),
        "held_out_templates": {
            language: sorted(held_out_names(language, settings.held_out_templates, settings.seed))
            for language in settings.languages
        },
    }
    check_output(output, facts, overwrite=overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        jobs = _jobs(folder, labels.of, user.find)
        done = in_order(partial(caption_pieces, data, settings), jobs, num_workers)
        total = folder.manifest.num_pieces
        counts, digest = _write_lines(done, unfinished, lambda pieces: on_progress(pieces, total))
        _check_counts(counts, settings, folder, user)
        facts |= {"counts": counts, "captions_sha256": digest}
        # Facts of other captions must never stand beside these.
        facts_path(output).unlink(missing_ok=True)
        unfinished.replace(output)
        sync_folder(output.parent)
        write_note(facts_path(output), facts)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return facts


def check_output(output: Path, facts: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse to write over anything but the same captions, or another set that may go.

    Raises:
        ConfigError: the place is taken.
    """
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: allowed a name that ends with .jsonl")
    if output.is_dir():
        raise ConfigError(f"--output {output}: found a folder; allowed: a .jsonl file")
    if not output.exists():
        if facts_path(output).exists():
            raise ConfigError(
                f"--output {output}: found {facts_path(output).name} without captions, where their "
                "facts would stand; move it away, or give another --output"
            )
        return
    try:
        old = read_facts(output)
    except ConfigError as error:
        raise ConfigError(
            f"--output {output}: found a file that is no caption set, nothing was written; give "
            "another --output"
        ) from error
    if overwrite or all(old.get(name) == value for name, value in facts.items()):
        return
    settings = facts["settings"]
    changed = [name for name in settings if settings[name] != old["settings"].get(name)]
    if old.get("shards_manifest_sha256") != facts["shards_manifest_sha256"]:
        changed.append("the shards")
    if old.get("patterns_sha256") != facts["patterns_sha256"]:
        changed.append("the sentence patterns of this version")
    raise ConfigError(
        f"--output {output} holds other captions (different: {', '.join(changed)}), nothing was "
        "written; replace them with --overwrite, or give another --output"
    )


def _write_lines(
    results: Iterable[tuple[PiecesJob, PiecesDone]], path: Path, on_done: Callable[[int], None]
) -> tuple[dict[str, int], str]:
    """Write all lines; returns counts, and the sum of the file."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    num_done = 0
    with path.open("wb") as file:
        for job, done in results:
            for line in done.lines:
                line_bytes = line.encode()
                digest.update(line_bytes)
                file.write(line_bytes)
            counts.update(done.counts)
            num_done += len(job.pieces)
            on_done(num_done)
        file.flush()
        os.fsync(file.fileno())
    return dict(sorted(counts.items())), digest.hexdigest()


def _check_counts(
    counts: dict[str, int],
    settings: CaptionSettings,
    folder: ShardFolder,
    user: ByLocation[tuple[str, str]],
) -> None:
    """Refuse a set without windows, and files of the user's that fit no piece."""
    if not counts.get("windows"):
        raise ConfigError(
            f"--max_seq_len {settings.max_seq_len}: no bar of {folder.storage.name} is that short; "
            "give more"
        )
    if user.num_entries and not counts["pieces_with_user_captions"]:
        raise ConfigError(
            f"--user_captions {settings.user_captions}: none of its locations (such as "
            f"{user.example()}) is a file of {folder.storage.name} (such as "
            f"{_first_source(folder)}); nothing was written"
        )
    if settings.labels and not counts["labelled_pieces"]:
        raise ConfigError(
            f"--labels {' '.join(settings.labels)}: they say nothing of any file of "
            f"{folder.storage.name} (such as {_first_source(folder)}); nothing was written"
        )


def _first_source(folder: ShardFolder) -> str:
    split = next(name for name in SPLITS if folder.manifest.splits[name])
    return folder.split(split).facts(0)["source"]


def _jobs(
    folder: ShardFolder,
    labels_of: Callable[[str], Labels],
    captions_of: Callable[[str], list[tuple[str, str]]],
) -> Iterator[PiecesJob]:
    number = 0
    for name in SPLITS:
        split = folder.split(name)
        for first in range(0, split.num_pieces, _PIECES_PER_JOB):
            pieces = range(first, min(first + _PIECES_PER_JOB, split.num_pieces))
            sources = [split.facts(piece)["source"] for piece in pieces]
            yield PiecesJob(
                number,
                name,
                pieces,
                sources,
                [labels_of(source) for source in sources],
                [captions_of(source) for source in sources],
            )
            number += 1


def in_order(
    task: Callable[[PiecesJob], PiecesDone], jobs: Iterable[PiecesJob], num_workers: int
) -> Iterator[tuple[PiecesJob, PiecesDone]]:
    """Run jobs in some processes, and give their results in the order of the jobs."""
    if num_workers == 1:
        yield from ((job, task(job)) for job in jobs)
        return
    early: dict[int, tuple[PiecesJob, PiecesDone]] = {}
    expected = 0
    for job, done in local_engine(num_workers)(task, jobs):
        if isinstance(done, Died):
            raise ConfigError(
                f"--num_workers {num_workers}: a worker died over {job.split} pieces "
                f"{job.pieces.start}..{job.pieces.stop - 1}, perhaps for want of memory; nothing "
                "was written; try fewer workers"
            )
        early[job.number] = job, done
        while expected in early:
            yield early.pop(expected)
            expected += 1
