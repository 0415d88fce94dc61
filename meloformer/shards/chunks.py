"""A chunk of input files to pieces on disk: what one worker does, whatever the files hold."""

import faulthandler
import math
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np

from meloformer.errors import MidiError, ShardError
from meloformer.shards.convert import ConvertedPiece, convert_midi
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import Died, run_in_pool
from meloformer.shards.sources import MidiFile
from meloformer.shards.spill import SpillWriter

FILES_PER_CHUNK = 32
FILE_TIME_LIMIT_SECONDS = 60.0

_REARM_SECONDS = 1.0


@dataclass(frozen=True)
class Chunk:
    """Consecutive files of the input; cut the same way for any number of workers."""

    number: int
    files: tuple[MidiFile, ...]


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """What became of a chunk.

    Args:
        number: of the chunk.
        records: (N,) spill.RECORD of its pieces.
        rejected: files by reason.
        counts: what quantising cost, summed over its pieces.
    """

    number: int
    records: np.ndarray
    rejected: Counter[str]
    counts: Counter[str]


@dataclass(frozen=True)
class Culprit:
    """A file whose worker died with it: never read again."""

    name: str

    def read(self) -> bytes:
        raise MidiError(
            "crashed", "the worker died (a crash, a hang in native code, or out of memory)"
        )


def cut_chunks(
    files: Iterable[MidiFile], files_per_chunk: int = FILES_PER_CHUNK
) -> Iterator[Chunk]:
    """Cut the input into chunks."""
    rest = iter(files)
    number = 0
    while chunk := tuple(islice(rest, files_per_chunk)):
        yield Chunk(number, chunk)
        number += 1


def convert_chunks(
    chunks: Iterable[Chunk],
    spill: Path,
    settings: ShardSettings,
    *,
    num_workers: int,
    time_limit_seconds: float = FILE_TIME_LIMIT_SECONDS,
) -> Iterator[ChunkResult]:
    """Convert chunks in worker processes; results come as they are ready.

    Where a worker died, the files it may have died of are tried one by one, and those that kill
    their worker again are rejected with the reason `crashed`.

    Raises:
        ShardError: workers go on dying without a file to blame.
    """
    task = partial(
        convert_chunk, spill=spill, settings=settings, time_limit_seconds=time_limit_seconds
    )
    lost: list[Chunk] = []
    for chunk, result in run_in_pool(task, chunks, num_workers=num_workers):
        if isinstance(result, Died):
            lost.append(chunk)
        else:
            yield result
    if lost:
        yield from _convert_lost(lost, task)


def _convert_lost(lost: list[Chunk], task: "partial[ChunkResult]") -> Iterator[ChunkResult]:
    # One job at a time, so that a death has one suspect.
    one_by_one = partial(run_in_pool, task, num_workers=1, jobs_per_worker=1)
    singles = (Chunk(chunk.number, (file,)) for chunk in lost for file in chunk.files)
    culprits = {
        (single.number, single.files[0].name)
        for single, result in one_by_one(singles)
        if isinstance(result, Died)
    }
    cleared = (
        Chunk(
            chunk.number,
            tuple(
                Culprit(file.name) if (chunk.number, file.name) in culprits else file
                for file in chunk.files
            ),
        )
        for chunk in lost
    )
    for chunk, result in one_by_one(cleared):
        if isinstance(result, Died):
            raise ShardError(
                f"workers die at chunk {chunk.number} (from {chunk.files[0].name}), though each "
                "of its files alone passes; this machine is probably out of memory"
            )
        yield result


def convert_chunk(
    chunk: Chunk, *, spill: Path, settings: ShardSettings, time_limit_seconds: float
) -> ChunkResult:
    """Convert the files of a chunk one after the other.

    Args:
        chunk: files.
        spill: folder that takes the pieces.
        settings: settings of the build.
        time_limit_seconds: per file, reading included.
    """
    rejected: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with _Watch(time_limit_seconds) as watch, SpillWriter(spill, chunk.number) as writer:
        for file in chunk.files:
            try:
                piece = _convert_file(file, settings, watch)
            except MidiError as error:
                rejected[error.reason] += 1
                writer.reject(file.name, error)
            else:
                counts.update(piece.counts)
                writer.add(piece)
        records = writer.records()
    return ChunkResult(chunk.number, records, rejected, counts)


def _convert_file(file: MidiFile, settings: ShardSettings, watch: "_Watch") -> ConvertedPiece:
    try:
        with watch.one_file():
            return convert_midi(file.read(), file.name, settings)
    except MidiError:
        raise
    except _TimeIsUp as error:
        limit = f"{watch.limit_seconds:g} s"
        raise MidiError("timeout", f"took more than {limit}; allowed {limit}") from error
    except Exception as error:  # a fault of ours on one file of millions: named, counted, not fatal
        raise MidiError("internal_error", _where(error)) from error


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


class _TimeIsUp(BaseException):
    """Not an Exception: no reader may take it for one of its own."""


class _Watch:
    """Limits the time of a file: by an alarm, and where native code is deaf to it, by death.

    Args:
        limit_seconds: after which the alarm raises; the process ends after about twice as long.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._armed_at = -math.inf

    def __enter__(self) -> "_Watch":
        self._previous = signal.signal(signal.SIGALRM, self._on_alarm)
        self._null = open(os.devnull, "w")  # closed in __exit__
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, self._previous)
        self._null.close()

    @contextmanager
    def one_file(self) -> Iterator[None]:
        """Raise _TimeIsUp in the block when its time is up."""
        # Arming costs a thread, so files that come quickly share one.
        now = time.monotonic()
        if now - self._armed_at > min(_REARM_SECONDS, self.limit_seconds):
            faulthandler.dump_traceback_later(2 * self.limit_seconds, exit=True, file=self._null)
            self._armed_at = now
        signal.setitimer(signal.ITIMER_REAL, self.limit_seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @staticmethod
    def _on_alarm(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp
