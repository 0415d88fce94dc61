"""What a sequence shall be besides grammatical: wishes that the mask of the grammar keeps."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meloformer.errors import ConfigError
from meloformer.midi.general_midi import instrument_in_words
from meloformer.midi.grid import DRUMS, METRE_STEPS, NUM_INSTRUMENTS
from meloformer.tokens.vocabulary import BLOCK_SIZES, Kind

NUM_PITCHES = BLOCK_SIZES[Kind.PITCH]
_PITCH_CLASS = np.arange(NUM_PITCHES) % 12


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is wished for; None or () leaves the choice to whoever samples.

    Args:
        num_bars: EOS stands after exactly so many bars, the last of which gets a note; None
            allows EOS after any bar with a note.
        instruments: the only ones that may play; 0 drums, 1 + program otherwise.
        metre: index into METRES, from the next bar on.
        tempo: index into TEMPOS_BPM, from the next bar on.
        chords: of the bars from the first one on, as in the bar tokens; then from the front again.
        playing: instruments that play at least once, and soon: see keeper.last_bar_to_enter.
        num_instruments: so many different ones play, those of `playing` among them; as soon.
        entries: (instrument, bar) pairs: silent before that bar, counted from 0, and plays in it.
        least_notes: of every bar, all instruments together.
        most_notes: of every bar, all instruments together.
        scale: pitch classes, 0..11, of all instruments but drums.
        ranges: (instrument, lowest pitch, highest pitch).

    Raises:
        ConfigError: wishes that no sequence can fulfil.
    """

    num_bars: int | None = None
    instruments: Collection[int] | None = None
    metre: int | None = None
    tempo: int | None = None
    chords: tuple[int, ...] = ()
    playing: tuple[int, ...] = ()
    num_instruments: int | None = None
    entries: tuple[tuple[int, int], ...] = ()
    least_notes: int = 0
    most_notes: int | None = None
    scale: tuple[int, ...] | None = None
    ranges: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        self._check_indices()
        if not self.are_kept_by_kind:
            self._check_pitches()
            self._check_notes()
            self._check_players()
            self._check_bars()

    @property
    def are_kept_by_kind(self) -> bool:
        """Whether nothing is wished for but bars, instruments that may play, metre and tempo."""
        return not (self.bind_whole_piece or self.chords or self.ranges) and self.scale is None

    @property
    def bind_whole_piece(self) -> bool:
        """Whether something counts who plays, or how much, from the first bar on."""
        return bool(
            self.playing
            or self.entries
            or self.num_instruments is not None
            or self.least_notes
            or self.most_notes is not None
        )

    @cached_property
    def pitches(self) -> np.ndarray:
        """(instruments, pitches) bool: what each instrument may play if it does."""
        table = np.ones((NUM_INSTRUMENTS, NUM_PITCHES), dtype=bool)
        if self.scale is not None:
            table[np.arange(NUM_INSTRUMENTS) != DRUMS] &= np.isin(_PITCH_CLASS, self.scale)
        for instrument, low, high in self.ranges:
            table[instrument, :low] = table[instrument, high + 1 :] = False
        return table

    @cached_property
    def may_play(self) -> np.ndarray:
        """(instruments,) bool: those that are permitted and have a pitch to play."""
        permitted = np.ones(NUM_INSTRUMENTS, dtype=bool)
        if self.instruments is not None:
            permitted[:] = False
            permitted[list(self.instruments)] = True
        return permitted & self.pitches.any(axis=1)

    @property
    def entering(self) -> dict[int, int]:
        """Bar of each instrument that has an entry."""
        return dict(self.entries)

    @property
    def must_play(self) -> frozenset[int]:
        """Instruments that are named: with an entry or without."""
        return frozenset(self.playing) | frozenset(self.entering)

    def _check_indices(self) -> None:
        if self.num_bars is not None and self.num_bars < 1:
            raise ConfigError(f"{self.num_bars} bars wished; allowed: at least 1 bar")
        if self.instruments is not None and not self.instruments:
            raise ConfigError(
                "no instrument may play: a piece needs a note; allowed: at least one "
                "instrument, or None for all"
            )
        named = [*(self.instruments or ()), *self.playing, *self.entering]
        named += [instrument for instrument, _, _ in self.ranges]
        wished = [(Kind.METRE, self.metre), (Kind.TEMPO, self.tempo)]
        wished += [(Kind.BAR, chord) for chord in self.chords]
        wished += [(Kind.INSTRUMENT, index) for index in named]
        for kind, index in wished:
            if index is not None and not 0 <= index < BLOCK_SIZES[kind]:
                raise ConfigError(
                    f"{kind.name.lower()} index {index} wished; allowed: 0..{BLOCK_SIZES[kind] - 1}"
                )

    def _check_pitches(self) -> None:
        for instrument, low, high in self.ranges:
            if not 0 <= low <= high < NUM_PITCHES:
                raise ConfigError(
                    f"{instrument_in_words(instrument)} from pitch {low} to {high} wished; "
                    f"allowed: the lower first, 0..{NUM_PITCHES - 1}"
                )
        for instrument in sorted({*(self.instruments or ()), *self.must_play}):
            if not self.pitches[instrument].any():
                raise ConfigError(
                    f"{instrument_in_words(instrument)} has no pitch left: found a range without a "
                    "note of the scale; allowed: a wider range, or no scale"
                )

    def _check_notes(self) -> None:
        if self.most_notes is not None and not max(1, self.least_notes) <= self.most_notes:
            raise ConfigError(
                f"{self.least_notes} to {self.most_notes} notes a bar wished; allowed: at least 1 "
                "at most, and no more at least than at most"
            )
        # One instrument alone holds it, in the shortest bar: then no choice can lead astray.
        steps = int(METRE_STEPS.min() if self.metre is None else METRE_STEPS[self.metre])
        fewest = self.pitches[self.may_play].sum(axis=1).min(initial=NUM_PITCHES)
        if self.least_notes > steps * fewest:
            raise ConfigError(
                f"at least {self.least_notes} notes a bar wished: an instrument of {fewest} "
                f"pitches holds {steps * fewest} in a bar of {steps} steps; allowed: up to that; "
                "wish for a time signature of longer bars, a wider range or fewer notes"
            )

    def _check_players(self) -> None:
        permitted = set(np.flatnonzero(self.may_play).tolist())
        if strangers := sorted(self.must_play - permitted):
            names = ", ".join(map(instrument_in_words, strangers))
            raise ConfigError(
                f"{names} shall play and may not; allowed: name no instrument that is left out"
            )
        if self.num_instruments is None:
            return
        if not max(1, len(self.must_play)) <= self.num_instruments <= len(permitted):
            raise ConfigError(
                f"{self.num_instruments} instruments wished: {len(self.must_play)} are to play in "
                f"any case and {len(permitted)} may; allowed: {max(1, len(self.must_play))} to "
                f"{len(permitted)}"
            )

    def _check_bars(self) -> None:
        if self.num_bars is None:
            if self.must_play or self.num_instruments is not None:
                raise ConfigError(
                    "instruments that are to play, in a piece of any length: allowed: beside a "
                    "number of bars"
                )
            return
        last = self.num_bars - 1
        if len(self.chords) > self.num_bars:
            raise ConfigError(
                f"{len(self.chords)} chords wished for {self.num_bars} bars; allowed: one a bar, "
                "or fewer that are repeated"
            )
        for instrument, bar in self.entries:
            if not 0 <= bar <= last:
                raise ConfigError(
                    f"{instrument_in_words(instrument)} from bar {bar}: found {self.num_bars} "
                    f"bars, counted from 0; allowed: 0..{last}"
                )
        self._check_room(self.num_bars)

    def _check_room(self, num_bars: int) -> None:
        """Whether the bars hold those that are to play, and somebody plays where notes must be."""
        late = {instrument for instrument, bar in self.entries if bar > 0}
        early = set(np.flatnonzero(self.may_play).tolist()) - late
        if self.num_instruments == len(self.must_play):
            early &= self.must_play
        if self.least_notes and not early:
            raise ConfigError(
                f"at least {self.least_notes} notes a bar wished: found nobody who may play in bar "
                "0; allowed: an instrument that enters there, or no least number of notes"
            )
        if self.most_notes is None:
            return
        for bar, entering in sorted(Counter(self.entering.values()).items()):
            if entering > self.most_notes:
                raise ConfigError(
                    f"at most {self.most_notes} notes a bar wished: found {entering} instruments "
                    f"that enter at bar {bar}; allowed: as many as notes, or more notes"
                )
        players = self.num_instruments or len(self.must_play)
        if players > self.most_notes * num_bars:
            raise ConfigError(
                f"{players} instruments wished: {num_bars} bars of at most {self.most_notes} notes "
                f"hold {self.most_notes * num_bars}; allowed: up to that, or more notes a bar"
            )


NO_WISHES = Wishes()
