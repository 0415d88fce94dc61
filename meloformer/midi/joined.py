"""Quantised pieces laid end to end: one array call does for many what it does for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from meloformer.midi.quantised import QuantisedPiece


@dataclass(frozen=True, eq=False, kw_only=True)
class JoinedPieces:
    """Several pieces as one, with the places where they meet.

    Args:
        music: bars and notes of all pieces, one piece after the other, bars numbered through.
        first_bar: (P + 1,) int64 first bar of each piece; the last entry is the number of bars.
        first_note: (P + 1,) int64 first note of each piece; the last entry is the number of notes.
    """

    music: QuantisedPiece
    first_bar: np.ndarray
    first_note: np.ndarray

    @classmethod
    def of(cls, piece: QuantisedPiece) -> JoinedPieces:
        """A single piece, for what is written for several."""
        return cls(
            music=piece,
            first_bar=np.array([0, piece.num_bars]),
            first_note=np.array([0, piece.num_notes]),
        )

    @classmethod
    def join(cls, pieces: Sequence[QuantisedPiece]) -> JoinedPieces:
        """Lay pieces end to end.

        Args:
            pieces: at least one.
        """
        first_bar = _starts([piece.num_bars for piece in pieces])
        first_note = _starts([piece.num_notes for piece in pieces])
        columns = {
            field.name: np.concatenate([getattr(piece, field.name) for piece in pieces])
            for field in fields(QuantisedPiece)
        }
        columns["bar"] += first_bar[:-1].astype(np.int32).repeat(np.diff(first_note))
        return cls(music=QuantisedPiece(**columns), first_bar=first_bar, first_note=first_note)

    def __len__(self) -> int:
        return len(self.first_bar) - 1

    def piece(self, index: int) -> QuantisedPiece:
        """One of the pieces, as it was before it was joined."""
        bars = slice(*self.first_bar[index : index + 2].tolist())
        notes = slice(*self.first_note[index : index + 2].tolist())
        music = self.music
        return QuantisedPiece(
            bar_metre=music.bar_metre[bars],
            bar_tempo=music.bar_tempo[bars],
            bar=music.bar[notes] - np.int32(bars.start),
            instrument=music.instrument[notes],
            onset_steps=music.onset_steps[notes],
            pitch=music.pitch[notes],
            duration_steps=music.duration_steps[notes],
            velocity=music.velocity[notes],
        )

    def select(self, indices: Sequence[int]) -> JoinedPieces:
        """Some of the pieces, in the order given; at least one."""
        if list(indices) == list(range(len(self))):
            return self
        return self.join([self.piece(index) for index in indices])

    @cached_property
    def num_bars(self) -> np.ndarray:
        """(P,) int64 bars of each piece."""
        return np.diff(self.first_bar)

    @cached_property
    def num_notes(self) -> np.ndarray:
        """(P,) int64 notes of each piece."""
        return np.diff(self.first_note)

    @cached_property
    def piece_of_note(self) -> np.ndarray:
        """(num_notes,) int64 index of the piece that each note belongs to."""
        return np.arange(len(self)).repeat(self.num_notes)

    @cached_property
    def end_steps(self) -> np.ndarray:
        """(P,) int32 where each piece ends on the time line of all of them."""
        return self.music.bar_start_steps[self.first_bar[1:]].astype(np.int32)

    @cached_property
    def start_steps(self) -> np.ndarray:
        """(P,) int32 where each piece starts on the time line of all of them."""
        return self.music.bar_start_steps[self.first_bar[:-1]].astype(np.int32)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
