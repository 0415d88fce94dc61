"""The events of one damaged track, walked byte by byte and written anew as far as they are sound.

Only what reading uses is written: notes, programs, controllers, bends, names, tempos, metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

END_OF_TRACK = b"\xff\x2f\x00"

_TEXT = b"\xff\x01\x00"  # carries a delta that is too long for one event
_TRACK_NAME, _END, _TEMPO, _METRE = 0x03, 0x2F, 0x51, 0x58
# Which meta events are written, and how many bytes each must have; a name has any number.
_META_BYTES = {_TRACK_NAME: None, _TEMPO: 3, _METRE: 4}
_MAX_DELTA = 2**28 - 1  # four bytes of seven bits
# The standard allows four; writers that pad with zeros take one more.
_MAX_LENGTH_BYTES = 5
_SYSEX = (0xF0, 0xF7)
_NUM_SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}
_UNDEFINED = (0xF4, 0xF5, 0xF9, 0xFD)


class _CutError(Exception):
    """The bytes end, or stop making sense."""


@dataclass(kw_only=True)
class WalkedTrack:
    """What a walk found.

    Args:
        body: the sound events, without an end of track.
        end: position behind the last byte that was read.
        has_end: the walk came to an end of track.
        is_complete: it did, or it came to the last byte; not to a place that makes no sense.
        is_flawed: impossible events were left out or capped.
        first_tempo: microseconds per quarter, where the track states a tempo.
        num_events: events walked, sound or not.
    """

    body: bytearray = field(default_factory=bytearray)
    end: int = 0
    has_end: bool = False
    is_complete: bool = False
    is_flawed: bool = False
    first_tempo: int | None = None
    num_events: int = 0


def walk_track(
    data: bytes, start: int, limit: int, *, max_events: int, keep_tempos: bool = True
) -> WalkedTrack:
    """Walk events up to the end of track, `limit`, or the first byte that makes no sense.

    A note-on's velocity over 127 is capped; any other event with a data byte over 127 is left out.
    Both are believed only where the rest of the track makes sense: else the walk was out of step
    and the track ends before the first of them.

    Args:
        data: the whole file.
        start: position of the first event.
        limit: position behind the last byte that may belong to the track.
        max_events: where to stop a walk that would take too long; `num_events` then reaches it.
        keep_tempos: write tempo events.
    """
    track = WalkedTrack(end=start)
    walk = _Walk(data, limit, track, keep_tempos)
    try:
        while track.end < limit and track.num_events < max_events and not track.has_end:
            walk.take_event()
        track.is_complete = track.has_end or track.end >= limit
    except _CutError:
        pass
    if track.is_flawed and not track.is_complete:
        del track.body[walk.sound_bytes :]
    return track


class _Walk:
    """Where a walk stands.

    Args:
        data: the whole file.
        limit: position behind the last byte of the track.
        track: what is filled.
        keep_tempos: write tempo events.
    """

    def __init__(self, data: bytes, limit: int, track: WalkedTrack, keep_tempos: bool) -> None:
        self.data, self.limit, self.track, self.keep_tempos = data, limit, track, keep_tempos
        self.status = 0
        self.delta_ticks = 0  # since the last event that was written
        self.sound_bytes = 0  # of the body, before the first flaw

    def take_event(self) -> None:
        """Read one event, write it where it is sound, and move on.

        Raises:
            _CutError: it does not end within the track, or it is none.
        """
        track = self.track
        track.num_events += 1
        ticks, position = self._length(track.end)
        status = self._byte(position)
        if status >= 0x80:
            position += 1
        else:
            status = self.status
        if status < 0x80:
            raise _CutError
        delta_ticks = self.delta_ticks + ticks
        if status < 0xF0:
            self.status = status
            num_bytes = 1 if 0xC0 <= status < 0xE0 else 2
            position, values = self._bytes(position, num_bytes)
            self.delta_ticks = delta_ticks
            self._channel_message(status, values)
        elif status == 0xFF:
            number = self._byte(position)
            length, position = self._length(position + 1)
            position, values = self._bytes(position, length)
            self.delta_ticks = delta_ticks
            self._meta_event(number, values)
        else:
            length = _NUM_SYSTEM_BYTES.get(status, 0)
            if status in _SYSEX:
                length, position = self._length(position)
            position, _ = self._bytes(position, length)
            self.delta_ticks = delta_ticks
            if status in _UNDEFINED:
                self._flaw()
        track.end = position

    def _channel_message(self, status: int, values: bytes) -> None:
        is_note = status < 0xA0
        if max(values) > 127:
            self._flaw()
            if not is_note or values[0] > 127:
                return
            values = bytes([values[0], 127])
        self._write(bytes([status]) + values)

    def _meta_event(self, number: int, values: bytes) -> None:
        if number == _END:
            self.track.has_end = True
            return
        if number not in _META_BYTES or (number == _TEMPO and not self.keep_tempos):
            self._note_tempo(number, values)
            return
        num_bytes = _META_BYTES[number]
        if num_bytes is not None and len(values) != num_bytes:
            self._flaw()
            return
        self._note_tempo(number, values)
        self._write(bytes([0xFF, number]) + _variable_length(len(values)) + values)

    def _note_tempo(self, number: int, values: bytes) -> None:
        if number == _TEMPO and self.track.first_tempo is None and len(values) == 3:
            self.track.first_tempo = int.from_bytes(values, "big")

    def _write(self, message: bytes) -> None:
        while self.delta_ticks > _MAX_DELTA:
            self.track.body += _variable_length(_MAX_DELTA) + _TEXT
            self.delta_ticks -= _MAX_DELTA
        self.track.body += _variable_length(self.delta_ticks) + message
        self.delta_ticks = 0

    def _flaw(self) -> None:
        if not self.track.is_flawed:
            self.track.is_flawed = True
            self.sound_bytes = len(self.track.body)

    def _byte(self, position: int) -> int:
        if position >= self.limit:
            raise _CutError
        return self.data[position]

    def _bytes(self, position: int, num_bytes: int) -> tuple[int, bytes]:
        end = position + num_bytes
        if end > self.limit:
            raise _CutError
        return end, self.data[position:end]

    def _length(self, position: int) -> tuple[int, int]:
        """A number of seven bits a byte, and the position behind it."""
        value = 0
        for _ in range(_MAX_LENGTH_BYTES):
            byte = self._byte(position)
            position += 1
            value = value << 7 | byte & 127
            if byte < 128:
                return value, position
        raise _CutError


def _variable_length(value: int) -> bytes:
    """Seven bits a byte, the highest first.

    >>> _variable_length(127).hex(), _variable_length(128).hex()
    ('7f', '8100')
    """
    out = bytes([value & 127])
    while value := value >> 7:
        out = bytes([128 | value & 127]) + out
    return out
