"""The pieces whose statistics are taken: files of any origin, or held-out pieces of shards."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np

from meloformer.errors import ConfigError, MidiError
from meloformer.evaluation.statistics_table import measure
from meloformer.midi.harmony import bar_chords, estimate_key
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.shards.chunks import BYTES_PER_CHUNK, Chunk, cut_chunks
from meloformer.shards.fingerprints import signature
from meloformer.shards.guard import FileLimits, Guard, TimeIsUp
from meloformer.shards.pool import Died, Run
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.shards.sources import InputLostError, MidiFile, Source
from meloformer.tokens.hid import decode

# Where pieces lie that no training has seen, the least looked at first.
UNSEEN = ("test", "valid")

# Few, since a piece takes longer to measure than to read.
_FILES_PER_CHUNK = 16
# Told how many files are done, and of how many; 0 where a tar is still to be read to know.
OnFiles = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedPiece:
    """A piece and what is measured of it.

    Args:
        name: of its file, or its key in the shards.
        music: on the grid.
        values: every statistic by name.
        chord_B: of each bar.
        key: 0..23; None of drums alone.
        signature: (NUM_HASHES,) uint32, by which copies of the whole are found.
    """

    name: str
    music: QuantisedPiece
    values: dict[str, float]
    chord_B: np.ndarray
    key: int | None
    signature: np.ndarray


@dataclass(frozen=True, kw_only=True)
class UnreadFile:
    """A file that is no piece.

    Args:
        name: of the file.
        reason: a slug.
        detail: for people.
    """

    name: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False, kw_only=True)
class PieceSet:
    """Pieces that are judged together.

    Args:
        name: of the folder, or of what wrote them.
        pieces: those that could be read, in the order of their files.
        unread: the others.
    """

    name: str
    pieces: list[JudgedPiece]
    unread: list[UnreadFile]

    @property
    def num_files(self) -> int:
        return len(self.pieces) + len(self.unread)

    @property
    def reasons(self) -> dict[str, int]:
        """Files by the reason that they could not be read, the most frequent first."""
        return dict(Counter(file.reason for file in self.unread).most_common())

    def column(self, name: str) -> np.ndarray:
        """(P,) float64 of a statistic."""
        return np.array([piece.values[name] for piece in self.pieces], np.float64)


def judge_piece(
    name: str, music: QuantisedPiece, first_bars: int | None, piece: Piece | None = None
) -> JudgedPiece:
    """Measure a piece.

    Args:
        name: what it is called.
        music: all of it.
        first_bars: bars that are looked at; None takes all.
        piece: as it was read, its tracks apart; None where there are instruments alone.

    Raises:
        MidiError: the first bars hold no note.
    """
    if first_bars is not None:
        music = cut_bars(music, first_bars)
    return JudgedPiece(
        name=name,
        music=music,
        values=measure(music),
        chord_B=bar_chords(music),
        key=estimate_key(music),
        signature=signature(to_piece(music) if piece is None or first_bars else piece),
    )


def cut_bars(music: QuantisedPiece, first_bars: int) -> QuantisedPiece:
    """The first bars of a piece, as far as the last of them that holds a note.

    Raises:
        MidiError: none does.
    """
    if music.num_bars <= first_bars:
        return music
    num_notes = int(np.searchsorted(music.bar, first_bars))
    if not num_notes:
        raise MidiError("silent_start", f"no note in the first {first_bars} bars")
    num_bars = int(music.bar[num_notes - 1]) + 1
    notes = ("bar", "instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    return replace(
        music,
        bar_metre=music.bar_metre[:num_bars],
        bar_tempo=music.bar_tempo[:num_bars],
        **{name: getattr(music, name)[:num_notes] for name in notes},
    )


def read_pieces(
    source: Source,
    name: str,
    *,
    run: Run,
    first_bars: int | None = None,
    limits: FileLimits | None = None,
    on_files: OnFiles = lambda done, total: None,
) -> PieceSet:
    """Read and measure every MIDI file of a source; what cannot be read is kept with its reason.

    Args:
        source: files of any system.
        name: of the set.
        run: engine; a worker that dies costs the file that it died of.
        first_bars: see `judge_piece`.
        limits: of time and memory of each file.
        on_files: told how far it is.

    Raises:
        ConfigError: not one file is readable.
        ShardError: there is no file, or an archive is damaged.
    """
    task = partial(judge_chunk, first_bars=first_bars, limits=limits or FileLimits())
    total = source.survey().num_files or 0
    found: dict[int, list[JudgedPiece | UnreadFile]] = {}
    lost: list[Chunk] = []
    chunks = cut_chunks(source.files(), _FILES_PER_CHUNK, BYTES_PER_CHUNK)
    for chunk, result in run(task, chunks):
        if isinstance(result, Died):
            lost.append(chunk)
        else:
            found[chunk.number] = result
        on_files(sum(map(len, found.values())), total)
    # One job at a time, so that a death has one suspect.
    singles = (Chunk(chunk.number, (file,)) for chunk in lost for file in chunk.files)
    for chunk, result in run(task, singles, one_by_one=True) if lost else ():
        outcome = [_crashed(chunk.files[0])] if isinstance(result, Died) else result
        found.setdefault(chunk.number, []).extend(outcome)
    outcomes = list(chain.from_iterable(found[number] for number in sorted(found)))
    pieces = PieceSet(
        name=name,
        pieces=[one for one in outcomes if isinstance(one, JudgedPiece)],
        unread=[one for one in outcomes if isinstance(one, UnreadFile)],
    )
    if not pieces.pieces:
        reasons = ", ".join(f"{count} {reason}" for reason, count in pieces.reasons.items())
        raise ConfigError(
            f"--midi {name}: none of its {pieces.num_files} MIDI files can be read ({reasons}); "
            "allowed: a folder with at least one that can"
        )
    return pieces


def judge_chunk(
    chunk: Chunk, *, first_bars: int | None, limits: FileLimits
) -> list[JudgedPiece | UnreadFile]:
    """Read and measure some files, each within its limits; what a worker does."""
    with Guard(limits) as guard:
        return [_judge_file(file, first_bars, guard) for file in chunk.files]


def _judge_file(file: MidiFile, first_bars: int | None, guard: Guard) -> JudgedPiece | UnreadFile:
    limits = guard.limits
    try:
        with guard.limited():
            piece = read_midi(file.read())
            return judge_piece(file.name, quantise(piece), first_bars, piece)
    except InputLostError:
        raise
    except MidiError as error:
        return UnreadFile(name=file.name, reason=error.reason, detail=error.detail)
    except TimeIsUp:
        took = f"took more than {limits.file_seconds:g} s"
        return UnreadFile(name=file.name, reason="timeout", detail=took)
    except MemoryError:
        wanted = f"wanted more than {limits.file_megabytes} MB"
        return UnreadFile(name=file.name, reason="too_much_memory", detail=wanted)


def _crashed(file: MidiFile) -> UnreadFile:
    died = "the worker died (a crash, a hang in native code, or out of memory)"
    return UnreadFile(name=file.name, reason="crashed", detail=died)


@dataclass(frozen=True)
class HeldOut:
    """Where a held-out piece lies.

    Args:
        split: its split.
        index: that split.
        piece: its number there.
    """

    split: str
    index: SplitIndex
    piece: int

    @property
    def key(self) -> str:
        return self.index.key(self.piece)


def draw_held_out(folder: ShardFolder, num_pieces: int, seed: int) -> list[HeldOut]:
    """Pieces that training does not read: of the test split, and of the valid one if that is few.

    Which, and in which order, depends on their keys and the seed alone.

    Args:
        folder: the shards.
        num_pieces: as many, if there are so many.
        seed: of the draw.

    Raises:
        ConfigError: both splits are empty.
    """
    drawn: list[HeldOut] = []
    for split in UNSEEN:
        index = folder.split(split)
        order = sorted(enumerate(index.keys()), key=lambda place: _draw(seed, place[1]))
        taken = order[: num_pieces - len(drawn)]
        drawn += [HeldOut(split, index, piece) for piece, _ in taken]
    if not drawn:
        raise ConfigError(
            f"{folder.storage.name}: found no held-out piece, allowed 1 or more; build the shards "
            "with a --test_share or --valid_share above 0"
        )
    return drawn


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def held_out_pieces(
    drawn: Sequence[HeldOut],
    name: str,
    first_bars: int | None,
    on_files: OnFiles = lambda done, total: None,
) -> PieceSet:
    """Measure held-out pieces as files are; those whose first bars are silent are left out.

    Raises:
        ConfigError: none is left.
    """
    pieces, unread = [], []
    for done, (one, music) in enumerate(_decoded(drawn), 1):
        try:
            pieces.append(judge_piece(one.key, music, first_bars))
        except MidiError as error:
            unread.append(UnreadFile(name=one.key, reason=error.reason, detail=error.detail))
        on_files(done, len(drawn))
    if not pieces:
        raise ConfigError(
            f"{name}: no held-out piece has a note in its first {first_bars} bars; allowed: more "
            "bars, or all"
        )
    return PieceSet(name=name, pieces=pieces, unread=unread)


def _decoded(drawn: Iterable[HeldOut]) -> Iterator[tuple[HeldOut, QuantisedPiece]]:
    return ((one, decode(one.index.read(one.piece))) for one in drawn)
