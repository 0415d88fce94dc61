"""Keeps the wishes about chords, players, numbers of notes and pitches, token by token.

It narrows what the grammar allows, and never to nothing: what is still owed, to a bar or to the
piece, is known before each choice, and a choice after which it could not be paid is forbidden.
"""

from collections import Counter

import numpy as np

from meloformer.midi.grid import METRE_STEPS, NUM_INSTRUMENTS
from meloformer.tokens.vocabulary import BLOCK_SIZES, EOS, OFFSET, Kind
from meloformer.tokens.wishes import Wishes

_PITCHES = slice(OFFSET[Kind.PITCH], OFFSET[Kind.PITCH] + BLOCK_SIZES[Kind.PITCH])
_ONSETS = slice(OFFSET[Kind.ONSET], OFFSET[Kind.ONSET] + BLOCK_SIZES[Kind.ONSET])
_INSTRUMENTS = slice(OFFSET[Kind.INSTRUMENT], OFFSET[Kind.INSTRUMENT] + NUM_INSTRUMENTS)
_BARS = slice(OFFSET[Kind.BAR], OFFSET[Kind.BAR] + BLOCK_SIZES[Kind.BAR])
_UNBOUNDED = 10**9
_OF_A_NOTE = (Kind.PITCH, Kind.DURATION, Kind.VELOCITY)


class Keeper:
    """What the wishes leave of what the grammar allows.

    Args:
        wishes: of a sequence from its first token on.
    """

    def __init__(self, wishes: Wishes) -> None:
        self._chords = wishes.chords
        self._least = wishes.least_notes
        self._most = _UNBOUNDED if wishes.most_notes is None else wishes.most_notes
        self._pitches = wishes.pitches
        # Of each instrument, from the top.
        self._falling = [np.flatnonzero(row)[::-1].tolist() for row in wishes.pitches]
        self._may_play = wishes.may_play
        self._entry = np.zeros(NUM_INSTRUMENTS, dtype=int)
        for instrument, bar in wishes.entries:
            self._entry[instrument] = bar
        self._entering = wishes.entering
        self._num_entries = Counter(self._entering.values())
        self._num_bars = wishes.num_bars
        if wishes.num_bars is not None:
            self._last = wishes.num_bars - 1
            self._last_to_enter = last_bar_to_enter(wishes.num_bars)

        # Who plays for certain, or has played; of them, who may pay in any bar and has not yet.
        self._known = np.zeros(NUM_INSTRUMENTS, dtype=bool)
        self._known[list(wishes.must_play)] = True
        self._unpaid = self._known.copy()
        self._unpaid[list(self._entering)] = False
        # Others that may still join, and whether they must.
        self._num_others = NUM_INSTRUMENTS
        self._others_must = wishes.num_instruments is not None
        if wishes.num_instruments is not None:
            self._num_others = wishes.num_instruments - len(wishes.must_play)

        self._bar = -1
        self._steps = 0
        self._instrument = self._onset = -1
        self._num_notes = 0
        # Instruments that enter in this bar and have not played; how many unpaid ones must, too.
        self._entrants: list[int] = []
        self._num_due = 0
        self._next = self._paying = self._may_play

    def take(self, kind: Kind, index: int) -> None:
        """Follow one token."""
        if kind is Kind.PITCH:
            self._num_notes += 1
        elif kind is Kind.ONSET:
            self._onset = index
        elif kind is Kind.BAR:
            self._begin_bar()
        elif self._bar < 0:
            pass
        elif kind is Kind.INSTRUMENT:
            self._pay(index)
            self._instrument = index
            self._look_ahead()
        elif kind is Kind.METRE:
            self._steps = int(METRE_STEPS[index])

    def narrow(self, mask: np.ndarray, last: Kind | None) -> None:
        """Forbid what breaks a wish, or makes one impossible.

        Args:
            mask: (V,) bool of the grammar, changed in place.
            last: kind of the last token.
        """
        if last is Kind.INSTRUMENT and self._bar >= 0:
            self._narrow_onsets(mask)
        elif last is Kind.ONSET:
            self._narrow_pitches(mask)
        elif self._bar < 0:
            self._narrow_chords(mask)
        else:
            owed = len(self._entrants) + self._num_due
            has_room = self._num_notes + owed < self._most
            if last not in _OF_A_NOTE:
                pass
            elif has_room:
                self._narrow_pitches(mask)
                self._narrow_onsets(mask)
            else:
                mask[_PITCHES] = mask[_ONSETS] = False
            mask[_INSTRUMENTS] &= self._next if has_room else self._paying
            if owed or self._num_notes < self._least:
                mask[_BARS] = mask[EOS] = False
            else:
                self._narrow_chords(mask)

    def _narrow_chords(self, mask: np.ndarray) -> None:
        if self._chords:
            token = _BARS.start + self._chords[(self._bar + 1) % len(self._chords)]
            may_begin = mask[token]
            mask[_BARS] = False
            mask[token] = may_begin

    def _narrow_pitches(self, mask: np.ndarray) -> None:
        mask[_PITCHES] &= self._pitches[self._instrument]
        # As many must be left above as later onsets do not hold.
        falling = self._falling[self._instrument]
        later = (self._steps - 1 - self._onset) * len(falling)
        if (missing := self._missing() - later) > 0:
            highest = falling[min(missing, len(falling)) - 1]
            mask[_PITCHES.start + highest + 1 : _PITCHES.stop] = False

    def _narrow_onsets(self, mask: np.ndarray) -> None:
        if (missing := self._missing()) > 0:
            last = self._steps - -(-missing // len(self._falling[self._instrument]))
            mask[_ONSETS.start + last + 1 : _ONSETS.stop] = False

    def _missing(self) -> int:
        """Notes that this instrument must still add; any that may follow could add them all."""
        return 0 if self._has_next else self._least - self._num_notes

    def _begin_bar(self) -> None:
        self._bar += 1
        self._num_notes = 0
        self._instrument = -1
        self._here = self._may_play & (self._entry <= self._bar)
        self._entrants = sorted(i for i, bar in self._entering.items() if bar == self._bar)
        self._num_due = 0
        if self._num_bars is not None:
            owed = int(self._unpaid.sum()) + (self._num_others if self._others_must else 0)
            # In time as far as this bar has room, and at any rate before none is left.
            room_here = self._most - len(self._entrants)
            in_time = min(owed - self._room_until(self._last_to_enter), room_here)
            self._num_due = max(0, in_time, owed - self._room_until(self._last))
        self._look_ahead()

    def _room_until(self, last: int) -> int:
        """Notes that later bars, up to `last`, have for instruments without an entry."""
        later = range(self._bar + 1, last + 1)
        return self._most * len(later) - sum(self._num_entries[bar] for bar in later)

    def _pay(self, instrument: int) -> None:
        """Strike out what an instrument owes."""
        if instrument in self._entrants:
            self._entrants.remove(instrument)
        elif self._unpaid[instrument]:
            self._unpaid[instrument] = False
            self._num_due = max(0, self._num_due - 1)
        elif not self._known[instrument]:
            self._known[instrument] = True
            self._num_others -= 1
            if self._others_must:
                self._num_due = max(0, self._num_due - 1)

    def _look_ahead(self) -> None:
        """Who may follow in this bar, and who of them pays what is due in it."""
        self._next = self._here.copy()
        self._next[: self._instrument + 1] = False
        if not self._num_others:
            self._next &= self._known
        others = self._next & ~self._known
        self._paying = np.zeros(NUM_INSTRUMENTS, dtype=bool)
        if self._num_due:
            unpaid = self._unpaid & self._next
            # Behind each: enough that can pay the rest.
            payable = _num_behind(unpaid)
            pays = unpaid
            if self._others_must:
                pays = unpaid | others
                payable = payable + np.minimum(self._num_others - others, _num_behind(others))
            self._next &= payable >= self._num_due - pays
            self._paying |= pays & self._next
        if self._entrants:
            self._next[self._entrants[0] + 1 :] = False
            self._paying[self._entrants[0] + 1 :] = False
            self._paying[self._entrants[0]] = self._next[self._entrants[0]]
        self._has_next = bool(self._next.any())


def last_bar_to_enter(num_bars: int) -> int:
    """Bar, from 0, in which those play at last who are to play and have no entry.

    Whoever may wait until it must is heard in the last bar alone.

    >>> [last_bar_to_enter(num_bars) for num_bars in (1, 3, 8, 16, 2000)]
    [0, 0, 2, 4, 8]
    """
    return min(num_bars // 4, 8)


def _num_behind(which: np.ndarray) -> np.ndarray:
    """How many are behind each.

    >>> _num_behind(np.array([True, False, True])).tolist()
    [1, 1, 0]
    """
    return which[::-1].cumsum()[::-1] - which
