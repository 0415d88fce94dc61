"""Piece: a MIDI file as arrays in ticks, before any rounding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meloformer.midi import limits

if TYPE_CHECKING:
    import miditoolkit

SUSTAIN_PEDAL = 64  # controller number
PEDAL_DOWN = 64  # least controller value that means so


class _Columns:
    """Equality column by column, for dataclasses of arrays of one length."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, column.name), getattr(other, column.name))
            for column in fields(self)  # type: ignore[arg-type]
        )

    __hash__ = None  # type: ignore[assignment]  # arrays inside: equality without a hash


@dataclass(frozen=True, eq=False, kw_only=True)
class Notes(_Columns):
    """Notes of one track, or of all of them, in file order.

    Args:
        onset_ticks: (N,) int32, >= 0.
        duration_ticks: (N,) int32, >= 1.
        pitch: (N,) int32, 0..127.
        velocity: (N,) int32, 1..127.
    """

    onset_ticks: np.ndarray
    duration_ticks: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray

    def __len__(self) -> int:
        return len(self.onset_ticks)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pedal(_Columns):
    """Times during which the sustain pedal is down.

    Args:
        start_ticks: (N,) int64, ascending.
        end_ticks: (N,) int64; intervals do not overlap.
    """

    start_ticks: np.ndarray
    end_ticks: np.ndarray

    def __len__(self) -> int:
        return len(self.start_ticks)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tempos(_Columns):
    """Tempo changes; 120 holds before the first.

    Args:
        onset_ticks: (N,) int32, strictly ascending.
        bpm: (N,) float64, quarters per minute.
    """

    onset_ticks: np.ndarray
    bpm: np.ndarray

    def __len__(self) -> int:
        return len(self.onset_ticks)


@dataclass(frozen=True, eq=False, kw_only=True)
class TimeSignatures(_Columns):
    """Metre changes; 4/4 holds before the first.

    Args:
        onset_ticks: (N,) int32, strictly ascending.
        numerator: (N,) int32, >= 1.
        denominator: (N,) int32, a power of two.
    """

    onset_ticks: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray

    def __len__(self) -> int:
        return len(self.onset_ticks)


_NOTHING = np.zeros(0, np.int32)
NO_NOTES = Notes(onset_ticks=_NOTHING, duration_ticks=_NOTHING, pitch=_NOTHING, velocity=_NOTHING)
NO_PEDAL = Pedal(start_ticks=np.zeros(0, np.int64), end_ticks=np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Track:
    """Notes that one program plays, and what quantising uses or counts of the rest.

    Args:
        program: 0..127; of no meaning for drums.
        is_drum: plays on the drum channel.
        name: as the file says, often empty.
        notes: the notes.
        pedal: when the sustain pedal is down.
        num_bends: pitch bend events, which the grid cannot hold.
        num_controllers: controller events other than the sustain pedal, dropped likewise.
        num_zero_length: notes that had no duration and were given one tick.
    """

    program: int
    is_drum: bool
    name: str
    notes: Notes
    pedal: Pedal = field(default_factory=lambda: NO_PEDAL)
    num_bends: int = 0
    num_controllers: int = 0
    num_zero_length: int = 0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Multi-track music in ticks; every value is possible, or the constructor refuses.

    Args:
        ticks_per_quarter: resolution of all ticks.
        tracks: at least one note among them.
        tempos: tempo changes.
        time_signatures: metre changes, none after the last onset.
        recovered: what had to be mended in the file, joined by `+`; "" where nothing.
        joined_notes: the notes of all tracks, where they are joined already.

    Raises:
        MidiError: an impossible value or a size beyond midi/limits.py.
    """

    ticks_per_quarter: int
    tracks: tuple[Track, ...]
    tempos: Tempos
    time_signatures: TimeSignatures
    recovered: str = ""
    joined_notes: InitVar[Notes | None] = None

    def __post_init__(self, joined_notes: Notes | None) -> None:
        if joined_notes is not None:
            self.__dict__["notes"] = joined_notes
        limits.check_piece(self)

    @cached_property
    def notes(self) -> Notes:
        """Notes of all tracks, one track after the other: what runs over a whole piece at once."""
        parts = [NO_NOTES, *(track.notes for track in self.tracks)]
        return Notes(
            onset_ticks=np.concatenate([part.onset_ticks for part in parts]),
            duration_ticks=np.concatenate([part.duration_ticks for part in parts]),
            pitch=np.concatenate([part.pitch for part in parts]),
            velocity=np.concatenate([part.velocity for part in parts]),
        )

    @property
    def num_notes(self) -> int:
        return len(self.notes)

    @property
    def last_onset_ticks(self) -> int:
        return int(self.notes.onset_ticks.max())

    def save(self, path: Path | str) -> None:
        """Write a MIDI file; see `write.midi_bytes`."""
        from meloformer.midi.write import write_midi  # which needs this module

        write_midi(self, path)

    def to_miditoolkit(self) -> miditoolkit.MidiFile:
        """The same music as the object that miditoolkit users hold.

        Never write it with `MidiFile.dump`, which loses overlapping notes: `write_midi` does not.
        """
        from miditoolkit import ControlChange, Instrument, MidiFile, Note, TempoChange
        from miditoolkit import TimeSignature as MetreChange

        midi = MidiFile(ticks_per_beat=self.ticks_per_quarter)
        for track in self.tracks:
            instrument = Instrument(track.program, is_drum=track.is_drum, name=track.name)
            notes = track.notes
            columns = (notes.velocity, notes.pitch, notes.onset_ticks)
            ends = notes.onset_ticks.astype(np.int64) + notes.duration_ticks
            rows = zip(*(c.tolist() for c in (*columns, ends)), strict=True)
            instrument.notes = [Note(*row) for row in rows]
            for start, end in zip(
                track.pedal.start_ticks.tolist(), track.pedal.end_ticks.tolist(), strict=True
            ):
                instrument.control_changes.append(ControlChange(SUSTAIN_PEDAL, 127, start))
                instrument.control_changes.append(ControlChange(SUSTAIN_PEDAL, 0, end))
            midi.instruments.append(instrument)
        tempos, metres = self.tempos, self.time_signatures
        midi.tempo_changes = [
            TempoChange(bpm, ticks)
            for ticks, bpm in zip(tempos.onset_ticks.tolist(), tempos.bpm.tolist(), strict=True)
        ]
        metre_columns = (metres.numerator, metres.denominator, metres.onset_ticks)
        midi.time_signature_changes = [
            MetreChange(*row) for row in zip(*(c.tolist() for c in metre_columns), strict=True)
        ]
        midi.max_tick = max(n.end for i in midi.instruments for n in i.notes)
        return midi

    @classmethod
    def from_miditoolkit(cls, midi: miditoolkit.MidiFile) -> Piece:
        """A miditoolkit object as a Piece.

        Raises:
            MidiError: an impossible value, as for files.
        """
        tracks = []
        for instrument in midi.instruments:
            rows = np.array(
                [(n.start, n.end - n.start, n.pitch, n.velocity) for n in instrument.notes],
                dtype=np.int64,
            ).reshape(-1, 4)
            changes = [c for c in instrument.control_changes if c.number == SUSTAIN_PEDAL]
            changes.sort(key=lambda change: change.time)
            tracks.append(
                build_track(
                    program=instrument.program,
                    is_drum=instrument.is_drum,
                    name=instrument.name,
                    columns=(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]),
                    pedal=build_pedal(
                        np.array([change.time for change in changes], np.int64),
                        np.array([change.value for change in changes], np.int64),
                    ),
                    num_bends=len(instrument.pitch_bends),
                    num_controllers=len(instrument.control_changes) - len(changes),
                )
            )
        tempos = np.array([(t.time, t.tempo) for t in midi.tempo_changes]).reshape(-1, 2)
        metres = np.array(
            [(m.time, m.numerator, m.denominator) for m in midi.time_signature_changes]
        ).reshape(-1, 3)
        return build_piece(
            ticks_per_quarter=midi.ticks_per_beat,
            tracks=tracks,
            tempos=(tempos[:, 0], tempos[:, 1]),
            time_signatures=(metres[:, 0], metres[:, 1], metres[:, 2]),
        )


def build_track(
    *,
    program: int,
    is_drum: bool,
    name: str,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    pedal: Pedal | None = None,
    num_bends: int = 0,
    num_controllers: int = 0,
) -> Track:
    """A track from raw columns; notes without duration get one tick and are counted.

    Args:
        program: 0..127.
        is_drum: plays on the drum channel.
        name: as the file says.
        columns: onset, duration, pitch, velocity, any integer type.
        pedal: when the sustain pedal is down; None: never.
        num_bends: pitch bend events.
        num_controllers: controller events other than the sustain pedal.
    """
    onset, duration, pitch, velocity = (column.astype(np.int32, copy=False) for column in columns)
    num_zero_length = len(duration) - int(np.count_nonzero(duration))
    if num_zero_length:
        duration = duration + (duration == 0)
    return Track(
        program=program,
        is_drum=is_drum,
        name=name,
        notes=Notes(onset_ticks=onset, duration_ticks=duration, pitch=pitch, velocity=velocity),
        pedal=NO_PEDAL if pedal is None else pedal,
        num_bends=num_bends,
        num_controllers=num_controllers,
        num_zero_length=num_zero_length,
    )


def build_piece(
    *,
    ticks_per_quarter: int,
    tracks: Iterable[Track],
    tempos: tuple[np.ndarray, np.ndarray],
    time_signatures: tuple[np.ndarray, np.ndarray, np.ndarray],
    recovered: str = "",
    joined_notes: Notes | None = None,
) -> Piece:
    """A piece from raw columns: of several events at one tick the last wins.

    Metres after the last onset are dropped, so that a strange last one refuses nothing.

    Args:
        ticks_per_quarter: resolution of all ticks.
        tracks: all tracks.
        tempos: onset ticks and quarters per minute, in file order.
        time_signatures: onset ticks, numerator, denominator, in file order.
        recovered: what had to be mended in the file.
        joined_notes: the notes of all tracks, where they are joined already.
    """
    tracks = tuple(tracks)
    tempo_ticks, bpm = _last_of_each_tick(*tempos)
    metre_ticks, numerator, denominator = _last_of_each_tick(*time_signatures)
    num_metres = len(metre_ticks)
    if num_metres and metre_ticks[-1] > 0:
        onsets = [int(track.notes.onset_ticks.max()) for track in tracks if len(track.notes)]
        last_onset = max(onsets, default=limits.MAX_TICKS)
        num_metres = int(metre_ticks.searchsorted(last_onset, side="right"))
    return Piece(
        ticks_per_quarter=ticks_per_quarter,
        tracks=tracks,
        tempos=Tempos(onset_ticks=tempo_ticks.astype(np.int32), bpm=bpm.astype(np.float64)),
        time_signatures=TimeSignatures(
            onset_ticks=metre_ticks[:num_metres].astype(np.int32),
            numerator=numerator[:num_metres].astype(np.int32),
            denominator=denominator[:num_metres].astype(np.int32),
        ),
        recovered=recovered,
        joined_notes=joined_notes,
    )


def _last_of_each_tick(ticks: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Columns sorted by tick, of equal ticks only the last row.

    >>> _last_of_each_tick(np.array([4, 0, 0]), np.array([7, 8, 9]))
    (array([0, 4]), array([9, 7]))
    """
    if len(ticks) < 2 or (ticks[1:] > ticks[:-1]).all():
        return ticks, *values
    order = np.argsort(ticks, kind="stable")
    ticks = ticks[order]
    is_last = np.ones(len(ticks), bool)
    is_last[:-1] = ticks[1:] != ticks[:-1]
    return ticks[is_last], *(column[order][is_last] for column in values)


def build_pedal(ticks: np.ndarray, values: np.ndarray) -> Pedal:
    """Intervals from the pedal's controller events; one that is never released is left out.

    Args:
        ticks: (N,) ascending.
        values: (N,) 0..127, 64 and up mean down.

    >>> build_pedal(np.array([5, 6, 9, 20]), np.array([90, 127, 0, 64]))
    Pedal(start_ticks=array([5]), end_ticks=array([9]))
    """
    is_down = values >= PEDAL_DOWN
    turns = np.ones(len(is_down), bool)
    turns[:1] = is_down[:1]
    np.not_equal(is_down[1:], is_down[:-1], out=turns[1:])
    # Down and up by turns; the last down has no up where the pedal is never released.
    turn_ticks = ticks[turns].astype(np.int64)
    num_pairs = len(turn_ticks) // 2
    return Pedal(start_ticks=turn_ticks[: 2 * num_pairs : 2], end_ticks=turn_ticks[1::2])
