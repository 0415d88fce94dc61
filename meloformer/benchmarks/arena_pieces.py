"""What all systems of the arena are given: the same bars of the same pieces, on the same grid.

An excerpt is some bars of a piece that begin at a bar line and end with a bar that sounds: no
tokenisation but ours can say that a piece ends with silence. It is as long as the costliest
system's row takes, so that every system reads the same context of music.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meloformer.errors import ConfigError
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.masks import num_summaries
from meloformer.shards.reader import SplitIndex
from meloformer.tokens.attributes import ATTRIBUTE_KINDS, drop_attributes
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import Kind
from meloformer.tokens.windows import bar_starts, cut_window

# MuseFormer's prefix says how many bars remain, and nothing else: generation says it too, and it
# is among the tokens whose nats are counted.
_SAID = np.array([kind is Kind.LENGTH for kind in ATTRIBUTE_KINDS])

# Program, pitch, velocity and duration of every note, beside a position for all of one onset.
_REMI_TOKENS_PER_NOTE = 4
# Bar and metre; position and tempo, where the tempo changes.
_REMI_TOKENS_PER_BAR = 4
# BOS and EOS; what a prefix with the length and a restated metre and tempo take.
_TOKENS_AROUND = 6


@dataclass(frozen=True, eq=False, kw_only=True)
class Excerpt:
    """Some bars of a piece.

    Args:
        piece: number in its split.
        ids: (T,) HID tokens; their prefix says the bars that remain.
        starts: they start the piece.
        ends: they end it.
    """

    piece: int
    ids: np.ndarray
    starts: bool
    ends: bool

    @cached_property
    def music(self) -> QuantisedPiece:
        """The bars alone, counted from 0."""
        return decode(self.ids)

    @property
    def num_notes(self) -> int:
        return self.music.num_notes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an excerpt lies, before its tokens are read.

    Args:
        piece: number in its split.
        first: first bar.
        last: one past the last.
        num_notes: of these bars.
    """

    piece: int
    first: int
    last: int
    num_notes: int


class Excerpts:
    """The excerpts of some pieces of a split.

    Args:
        index: the split.
        pieces: which of its pieces.
        max_tokens: of a row, of any system.

    Attributes:
        places: excerpts, piece after piece.
        metres: indices into METRES that occur.
        notes_left_out: notes of bars that are too long for a row.

    Raises:
        ConfigError: there is nothing left.
    """

    def __init__(self, index: SplitIndex, pieces: Sequence[int], max_tokens: int) -> None:
        self._index = index
        self.places: list[Place] = []
        self.metres: set[int] = set()
        self.notes_left_out = 0
        for piece in pieces:
            music = decode(index.read(piece))
            self.metres |= set(music.bar_metre.tolist())
            notes = np.bincount(music.bar, minlength=music.num_bars)
            cost = self._cost(piece, music, notes)
            for first, last in cut(cost, notes > 0, max_tokens, num_summaries(max_tokens)):
                num_notes = int(notes[first:last].sum())
                self.places.append(Place(piece=piece, first=first, last=last, num_notes=num_notes))
            self.notes_left_out += music.num_notes
        self.notes_left_out -= self.num_notes
        if not self.places:
            raise ConfigError(
                f"{len(pieces)} pieces hold no bar of at most {max_tokens} tokens; allowed: a "
                "larger --max_seq_len, or shards with pieces in every split"
            )

    @property
    def num_notes(self) -> int:
        return sum(place.num_notes for place in self.places)

    @property
    def max_bars(self) -> int:
        """Bars of the one with most."""
        return max(place.last - place.first for place in self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Excerpt:
        if not 0 <= number < len(self.places):
            raise IndexError(number)
        place = self.places[number]
        ids = self._index.read(place.piece)
        num_bars = len(bar_starts(ids)) - 1
        ids = cut_window(ids, place.first, place.last)
        return Excerpt(
            piece=place.piece,
            ids=drop_attributes(ids, _SAID),
            starts=place.first == 0,
            ends=place.last == num_bars,
        )

    def by_size(self, notes_per_batch: int) -> list[list[int]]:
        """Numbers of all excerpts, the shortest first, in batches of at most so many notes."""
        notes = np.array([place.num_notes for place in self.places])
        return _filled(np.argsort(notes, kind="stable").tolist(), notes, notes_per_batch)

    def piece_totals(self, of_excerpts: Sequence[float] | np.ndarray) -> np.ndarray:
        """(P,) sums over the excerpts of each piece, of those that have any."""
        pieces = [place.piece for place in self.places]
        _, number = np.unique(pieces, return_inverse=True)
        return np.bincount(number, weights=np.asarray(of_excerpts, np.float64))

    def _cost(self, piece: int, music: QuantisedPiece, notes: np.ndarray) -> np.ndarray:
        """(num_bars,) most tokens that each bar takes, of any system."""
        onsets = np.unique(music.start_steps)
        onset_bars = np.searchsorted(music.bar_start_steps, onsets, side="right") - 1
        remi = _REMI_TOKENS_PER_NOTE * notes + _REMI_TOKENS_PER_BAR
        remi += np.bincount(onset_bars, minlength=music.num_bars)
        return np.maximum(remi, np.diff(self._index.bar_starts(piece)))


def beginning(index: SplitIndex, piece: int, num_bars: int) -> QuantisedPiece:
    """The first bars of a piece, or all of them where it has fewer."""
    ids = index.read(piece)
    return decode(cut_window(ids, 0, min(num_bars, len(bar_starts(ids)) - 1)))


def cut(
    cost: np.ndarray, sounds: np.ndarray, max_tokens: int, max_bars: int
) -> list[tuple[int, int]]:
    """Bars first..last - 1 of each excerpt, each as long as fits and ending with a bar that sounds.

    What lies between two excerpts is silent, or a bar that fits no row.

    Args:
        cost: (num_bars,) tokens of each bar.
        sounds: (num_bars,) whether it holds a note.
        max_tokens: of a row.
        max_bars: of a row.

    >>> cut(np.array([5, 1, 5, 9, 5]), np.array([1, 0, 1, 1, 1]), 14, 8)
    [(0, 1), (1, 3), (4, 5)]
    """
    room, found, first = max_tokens - _TOKENS_AROUND, [], 0
    total = np.concatenate([[0], np.cumsum(cost)])
    while first < len(cost):
        last = int(np.searchsorted(total, total[first] + room, side="right")) - 1
        heard = first + np.flatnonzero(sounds[first : min(last, first + max_bars)])
        if len(heard):
            found.append((first, int(heard[-1]) + 1))
            first = found[-1][1]
        else:
            first += 1
    return found


def batches(
    excerpts: Excerpts, notes_per_batch: int, seed: int, *, pool: int = 32
) -> Iterator[list[int]]:
    """Numbers of the excerpts of each step, epoch after epoch; the same ones for every system.

    Excerpts of about the same number of notes stand together, so that little is padded; the order
    of the steps is drawn.

    Args:
        excerpts: of the training split.
        notes_per_batch: at most, unless a single excerpt has more.
        seed: of the order.
        pool: batches among which excerpts are sorted.
    """
    notes = np.array([place.num_notes for place in excerpts.places])
    epoch = 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(notes))
        # Pools of about as many notes each, in the drawn order.
        pool_of = np.cumsum(notes[order]) // (pool * notes_per_batch)
        for number in np.unique(pool_of).tolist():
            mine = order[pool_of == number]
            ready = _filled(mine[np.argsort(notes[mine])].tolist(), notes, notes_per_batch)
            for place in random.permutation(len(ready)).tolist():
                yield ready[place]
        epoch += 1


def _filled(numbers: list[int], notes: np.ndarray, notes_per_batch: int) -> list[list[int]]:
    found: list[list[int]] = []
    total = 0
    for number in numbers:
        total += int(notes[number])
        if not found or total > notes_per_batch:
            found.append([])
            total = int(notes[number])
        found[-1].append(number)
    return found
