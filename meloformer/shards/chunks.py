"""A chunk of input files to pieces on disk: what one worker does, whatever the files hold."""

import hashlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meloformer.errors import MidiError
from meloformer.shards.convert import ConvertedPiece, convert_midi
from meloformer.shards.guard import FileLimits, Guard, TimeIsUp
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import Died, Run
from meloformer.shards.sources import InputLostError, MidiFile, RefusedFile, carried_bytes
from meloformer.shards.spill import SpillWriter, load_chunk
from meloformer.shards.staging import BuildStoppedError

FILES_PER_CHUNK = 128
# Members of a compressed tar travel to the workers with their bytes.
BYTES_PER_CHUNK = 16 << 20


@dataclass(frozen=True)
class Chunk:
    """Consecutive files of the input; cut the same way for any number of workers."""

    number: int
    files: tuple[MidiFile, ...]

    @property
    def names_sum(self) -> str:
        """To know the chunk again when a killed build goes on."""
        return hashlib.sha256("\0".join(file.name for file in self.files).encode()).hexdigest()


def cut_chunks(
    files: Iterable[MidiFile],
    files_per_chunk: int = FILES_PER_CHUNK,
    bytes_per_chunk: int = BYTES_PER_CHUNK,
) -> Iterator[Chunk]:
    """Cut the input into chunks, by the number of files and by the bytes that they carry."""
    chunk: list[MidiFile] = []
    number = held = 0
    for file in files:
        chunk.append(file)
        held += carried_bytes(file)
        if len(chunk) == files_per_chunk or held >= bytes_per_chunk:
            yield Chunk(number, tuple(chunk))
            chunk, number, held = [], number + 1, 0
    if chunk:
        yield Chunk(number, tuple(chunk))


def convert_chunks(
    chunks: Iterable[Chunk],
    spill: Path,
    settings: ShardSettings,
    *,
    run: Run,
    limits: FileLimits,
    on_found: Callable[[int], None],
    on_done: Callable[[int], None],
) -> int:
    """Convert the chunks that are not done yet.

    Where a worker died, the files it may have died of are tried one by one, and those that kill
    their worker again are rejected with the reason `crashed`.

    Args:
        chunks: all of the input.
        spill: folder that takes the pieces, and may hold some from before.
        settings: settings of the build.
        run: how jobs are run.
        limits: of each file.
        on_found: called with the number of files of each chunk that was done before.
        on_done: called with that of each chunk that is done now.

    Returns:
        Number of chunks.

    Raises:
        BuildStoppedError: workers go on dying without a file to blame.
        InputLostError: the input went away.
    """
    num_chunks = 0

    def to_do() -> Iterator[Chunk]:
        nonlocal num_chunks
        for chunk in chunks:
            num_chunks += 1
            done = load_chunk(spill, chunk.number)
            if done is not None and done.files == chunk.names_sum:
                on_found(len(chunk.files))
            else:
                yield chunk

    task = partial(convert_chunk, spill=spill, settings=settings, limits=limits)
    lost: list[Chunk] = []
    for chunk, result in run(task, to_do()):
        if isinstance(result, Died):
            lost.append(chunk)
        else:
            on_done(result)
    for result in _convert_lost(lost, task, run):
        on_done(result)
    return num_chunks


def _convert_lost(lost: list[Chunk], task: "partial[int]", run: Run) -> Iterator[int]:
    # One job at a time, so that a death has one suspect.
    singles = (
        Chunk(chunk.number, (file,)) for chunk in sorted(lost, key=_number) for file in chunk.files
    )
    culprits = {
        (single.number, single.files[0].name)
        for single, result in run(task, singles, one_by_one=True)
        if isinstance(result, Died)
    }
    cleared = (
        Chunk(
            chunk.number,
            tuple(
                _culprit(file) if (chunk.number, file.name) in culprits else file
                for file in chunk.files
            ),
        )
        for chunk in lost
    )
    for chunk, result in run(task, cleared, one_by_one=True):
        if isinstance(result, Died):
            raise BuildStoppedError(
                f"workers die at chunk {chunk.number} (from {chunk.files[0].name}), though each "
                "of its files alone passes; this machine is probably out of memory: the same "
                "command with fewer --num_workers goes on where this one stopped"
            )
        yield result


def _culprit(file: MidiFile) -> MidiFile:
    """In the place of a file whose worker died with it: never read again."""
    died = "the worker died (a crash, a hang in native code, or out of memory)"
    return RefusedFile(file.name, "crashed", died)


def _number(chunk: Chunk) -> int:
    return chunk.number


def convert_chunk(chunk: Chunk, *, spill: Path, settings: ShardSettings, limits: FileLimits) -> int:
    """Convert the files of a chunk one after the other.

    Args:
        chunk: files.
        spill: folder that takes the pieces.
        settings: settings of the build.
        limits: of each file, reading included.

    Returns:
        Number of files.
    """
    with Guard(limits) as guard, SpillWriter(spill, chunk.number, chunk.names_sum) as writer:
        for file in chunk.files:
            try:
                piece = _convert_file(file, settings, guard)
            except MidiError as error:
                writer.reject(file.name, error)
            else:
                writer.add(file.name, piece)
    return len(chunk.files)


def _convert_file(file: MidiFile, settings: ShardSettings, guard: Guard) -> ConvertedPiece:
    limits = guard.limits
    try:
        with guard.one_file():
            return convert_midi(file.read(), file.name, settings, file.facts)
    except (MidiError, InputLostError):
        raise
    except TimeIsUp as error:
        limit = f"{limits.file_seconds:g} s"
        raise MidiError("timeout", f"took more than {limit}; allowed {limit}") from error
    except MemoryError as error:
        limit = f"{limits.file_megabytes} MB"
        raise MidiError("too_much_memory", f"wanted more than {limit}; allowed {limit}") from error
    except Exception as error:  # a fault of ours on one file of millions: named, counted, not fatal
        raise MidiError("internal_error", _where(error)) from error


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
