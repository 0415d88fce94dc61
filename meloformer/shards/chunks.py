"""A chunk of input files to pieces on disk: what one worker does, whatever the files hold."""

import hashlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meloformer.errors import MidiError
from meloformer.shards.convert import ConvertedPiece, MidiBytes, convert_files
from meloformer.shards.guard import FileLimits, Guard, TimeIsUp
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import Died, Run
from meloformer.shards.sources import InputLostError, MidiFile, RefusedFile, carried_bytes
from meloformer.shards.spill import SpillWriter, load_chunk
from meloformer.shards.staging import BuildStoppedError

FILES_PER_CHUNK = 64
# Members of a compressed tar travel to the workers with their bytes.
BYTES_PER_CHUNK = 16 << 20
# Files that are converted in one pass: enough that a call costs little, few enough that their
# notes stay in the processor's cache.
FILES_TOGETHER = 32
_BYTES_TOGETHER = 1 << 20


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
            done = load_chunk(spill, chunk.number, verify=True)
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
    """Convert the files of a chunk.

    Args:
        chunk: files.
        spill: folder that takes the pieces.
        settings: settings of the build.
        limits: of each file, reading included.

    Returns:
        Number of files.
    """
    with Guard(limits) as guard, SpillWriter(spill, chunk.number, chunk.names_sum) as writer:
        for first in range(0, len(chunk.files), FILES_TOGETHER):
            files = chunk.files[first : first + FILES_TOGETHER]
            for file, outcome in zip(files, _convert(files, settings, guard), strict=True):
                if isinstance(outcome, MidiError):
                    writer.reject(file.name, outcome)
                else:
                    writer.add(outcome)
    return len(chunk.files)


def _convert(
    files: Sequence[MidiFile], settings: ShardSettings, guard: Guard
) -> list[ConvertedPiece | MidiError]:
    """Files together, which is faster; alone where that fails, so that each has its own limits."""
    try:
        with guard.limited():
            return _convert_together(files, settings)
    except InputLostError:
        raise
    except (Exception, TimeIsUp):
        pass  # and with the exception goes what its frames hold: a file alone needs the room
    return [_convert_alone(file, settings, guard) for file in files]


def _convert_together(
    files: Sequence[MidiFile], settings: ShardSettings
) -> list[ConvertedPiece | MidiError]:
    outcomes: list[ConvertedPiece | MidiError] = []
    for group in _read_in_groups(files):
        if isinstance(group, MidiError):
            outcomes.append(group)
        else:
            outcomes += convert_files(group, settings)
    return outcomes


def _read_in_groups(files: Sequence[MidiFile]) -> Iterator[list[MidiBytes] | MidiError]:
    """Files in their order, as many together as are not too big; alone what cannot be read."""
    group: list[MidiBytes] = []
    num_bytes = 0
    for file in files:
        try:
            group.append(MidiBytes(data=file.read(), name=file.name, facts=file.facts))
        except MidiError as error:
            yield group
            yield error
            group, num_bytes = [], 0
            continue
        num_bytes += len(group[-1].data)
        if num_bytes > _BYTES_TOGETHER:
            yield group
            group, num_bytes = [], 0
    yield group


def _convert_alone(
    file: MidiFile, settings: ShardSettings, guard: Guard
) -> ConvertedPiece | MidiError:
    limits = guard.limits
    try:
        with guard.limited():
            [outcome] = _convert_together([file], settings)
            return outcome
    except InputLostError:
        raise
    except TimeIsUp:
        limit = f"{limits.file_seconds:g} s"
        return MidiError("timeout", f"took more than {limit}; allowed {limit}")
    except MemoryError:
        limit = f"{limits.file_megabytes} MB"
        return MidiError("too_much_memory", f"wanted more than {limit}; allowed {limit}")
    except Exception as error:  # a fault of ours on one file of millions: named, counted, not fatal
        return MidiError("internal_error", _where(error))


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
