"""Damaged or wrapped MIDI bytes -> a clean MIDI file that holds the music which can be trusted.

Nothing is patched in place: events are walked and written anew, so that what comes out is sound
whatever went in. Ordinary files never come here: `is_plain` tells them apart in a few steps.
"""

from __future__ import annotations

import struct
import zlib

from meloformer.errors import MidiError
from meloformer.midi import limits
from meloformer.midi.events import END_OF_TRACK, WalkedTrack, walk_track

# Walking is Python, event by event: a file of more events than this is refused, not mended.
MAX_EVENTS = 1_000_000

_HEADER = struct.Struct(">4sIHHH")
_CHUNK_HEADER = struct.Struct(">4sI")
# Chunks of another kind in a row that are stepped over by their lengths.
_MAX_ALIENS = 16
_MAX_TRACKS = 2**16 - 1  # the field has sixteen bits
_DEFAULT_TEMPO = 500_000  # microseconds per quarter: the standard's, where a file states none

_MACBINARY_BYTES = 128
_MACBINARY_FORK_LENGTH = slice(83, 87)
# Frames per second by the number that stands for them.
_FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}


def is_plain(data: bytes) -> bool:
    """True where header, track count and chunk lengths are as the standard says.

    What follows the last track does not matter, unless it is a track that the header forgot.
    """
    if len(data) < _HEADER.size:
        return False
    tag, length, kind, num_tracks, division = _HEADER.unpack_from(data)
    if tag != b"MThd" or length != 6 or kind > 2 or division >= 0x8000:
        return False
    position = _HEADER.size
    for _ in range(num_tracks):
        if data[position : position + 4] != b"MTrk":
            return False
        position += _CHUNK_HEADER.size + int.from_bytes(data[position + 4 : position + 8], "big")
        if position > len(data) or data[position - 3 : position] != END_OF_TRACK:
            return False
    return data.find(b"MTrk", position) < 0


def recover_midi(data: bytes) -> tuple[bytes, str]:
    """Rebuild a clean file from what is left of one.

    Args:
        data: bytes that are no plain MIDI file, or that the reader refused.

    Returns:
        bytes of a plain file, and what was mended, joined by `+`: gzip, macbinary, rmid, prefix
        (foreign bytes before the file), header, smpte (frames became quarters), chunks (wrong
        lengths, or junk between tracks), events (impossible ones), cut_tail; "" where the file was
        unusual but sound.

    Raises:
        MidiError: unreadable where no music is left, file_too_big where it unpacks to more than a
            file may have, too_many_events where mending would take too long.
    """
    mended: list[str] = []
    data = _unwrap(data, mended)
    first_track = data.find(b"MTrk")
    if first_track < 0:
        raise MidiError("unreadable", "found no track chunk (MTrk)")
    start = data.find(b"MThd", 0, first_track)
    if start > 0:
        mended.append("prefix")
    header = _Header(data, start, first_track)
    tracks = _walk_tracks(data, first_track, header, mended)
    is_shorter = "cut_tail" in mended and header.num_tracks > len(tracks)
    if header.is_damaged or (header.num_tracks != len(tracks) and not is_shorter):
        mended.append("header")
    bodies = [bytes(track.body) for track in tracks]
    ticks_per_quarter = header.division
    if header.frame_ticks is not None:
        mended.append("smpte")
        stated = (track.first_tempo for track in tracks if track.first_tempo)
        tempo = next(stated, _DEFAULT_TEMPO)
        ticks_per_quarter = round(header.frame_ticks * tempo / 1e6)
        bodies[0] = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big") + bodies[0]
    if ticks_per_quarter > limits.MAX_TICKS_PER_QUARTER:
        raise MidiError("ticks_per_quarter", f"{ticks_per_quarter} ticks per quarter")
    kind = 1 if len(tracks) > 1 else 0
    rebuilt = [_HEADER.pack(b"MThd", 6, kind, len(tracks), ticks_per_quarter)]
    for body in bodies:
        body += b"\x00" + END_OF_TRACK
        rebuilt += [_CHUNK_HEADER.pack(b"MTrk", len(body)), body]
    return b"".join(rebuilt), "+".join(dict.fromkeys(mended))


def _unwrap(data: bytes, mended: list[str]) -> bytes:
    """What lies in a gzip, MacBinary or RIFF wrapper, or in one in another."""
    if data[:2] == b"\x1f\x8b":
        mended.append("gzip")
        data = _gunzip(data)
    tag = data[_MACBINARY_BYTES : _MACBINARY_BYTES + 4]
    if data[:1] == b"\x00" and tag in (b"MThd", b"RIFF"):
        mended.append("macbinary")
        length = int.from_bytes(data[_MACBINARY_FORK_LENGTH], "big")
        data = data[_MACBINARY_BYTES:]
        if _HEADER.size < length < len(data):  # what follows is padding and the resource fork
            data = data[:length]
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        mended.append("rmid")
        data = _riff_data(data)
    return data


def _gunzip(data: bytes) -> bytes:
    """Unpack at most what a file may have; a cut stream gives what came before the cut."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, limits.MAX_FILE_BYTES + 1)
    except zlib.error as error:
        raise MidiError("unreadable", f"gzip: {error}") from error
    if len(unpacked) > limits.MAX_FILE_BYTES:
        raise MidiError(
            "file_too_big", f"gzip unpacks to over {limits.MAX_FILE_BYTES} bytes; allowed no more"
        )
    return unpacked


def _riff_data(data: bytes) -> bytes:
    """The chunk `data` of a RIFF file; its lengths are little-endian and rounded up to even."""
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"data":
            return data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    return data[12:]


class _Header:
    """What can be known of the header.

    Args:
        data: the whole file.
        start: position of the header chunk, -1 where there is none.
        first_track: position of the first track chunk.
    """

    def __init__(self, data: bytes, start: int, first_track: int) -> None:
        # Without its tag, the header is taken for what stands right before the first track.
        fields = start + 8 if start >= 0 else first_track - 6
        if fields < 0 or fields + 6 > first_track:
            raise MidiError("header_lost", "ticks per quarter are lost with the header")
        kind, self.num_tracks, self.division = struct.unpack_from(">HHH", data, fields)
        length = int.from_bytes(data[start + 4 : start + 8], "big") if start >= 0 else None
        if length is None and (kind > 3 or not 0 < self.division < 0x8000):
            raise MidiError("header_lost", "ticks per quarter are lost with the header")
        is_next = _aliens_end(data, start + _HEADER.size) == first_track
        self.is_damaged = length != 6 or kind > 2 or not is_next
        self.frame_ticks: float | None = None  # ticks per second
        if self.division >= 0x8000:
            rate = 256 - (self.division >> 8)
            if rate not in _FRAME_RATES:
                raise MidiError("ticks_per_quarter", f"{rate} frames per second")
            self.frame_ticks = _FRAME_RATES[rate] * (self.division & 0xFF)


def _walk_tracks(
    data: bytes, position: int, header: _Header, mended: list[str]
) -> list[WalkedTrack]:
    """All tracks from `position` on, up to the end or to the header of another file."""
    tracks: list[WalkedTrack] = []
    events_left = MAX_EVENTS
    while position >= 0:
        limit = _stated_end(data, position)
        is_stated = limit is not None
        if limit is None:
            limit = data.find(b"MTrk", position + 4)
            limit = limit if limit >= 0 else len(data)
        track = walk_track(
            data,
            min(position + _CHUNK_HEADER.size, limit),
            limit,
            max_events=events_left,
            keep_tempos=header.frame_ticks is None,
        )
        tracks.append(track)
        events_left -= track.num_events + 1
        if events_left <= 0 or len(tracks) > _MAX_TRACKS:
            raise MidiError("too_many_events", f"over {MAX_EVENTS} in a file that needs mending")
        if not track.is_complete or (limit == len(data) and not (is_stated or track.has_end)):
            mended.append("cut_tail" if limit == len(data) else "events")
        elif not is_stated:
            mended.append("chunks")
        if track.is_flawed:
            mended.append("events")
        position = _next_track(
            data, track.end if track.has_end and not is_stated else limit, mended
        )
    return tracks


def _stated_end(data: bytes, position: int) -> int | None:
    """End of the track chunk as it states it, or None where that cannot be right."""
    end = position + _CHUNK_HEADER.size + int.from_bytes(data[position + 4 : position + 8], "big")
    if end > len(data):
        return None
    is_end = end == len(data) or data[end - 3 : end] == END_OF_TRACK
    return end if is_end or data[end : end + 4] == b"MTrk" or _alien_end(data, end) else None


def _alien_end(data: bytes, position: int) -> int | None:
    """End of a chunk that is no track, where one starts at `position`."""
    tag = data[position : position + 4]
    end = position + _CHUNK_HEADER.size + int.from_bytes(data[position + 4 : position + 8], "big")
    is_chunk = len(tag) == 4 and tag.isalnum() and tag.isascii() and tag[:3] != b"MTr"
    return end if is_chunk and tag != b"MThd" and end <= len(data) else None


def _aliens_end(data: bytes, position: int) -> int:
    """Where chunks of other kinds, if there are any at `position`, give way to something else."""
    for _ in range(_MAX_ALIENS):
        end = _alien_end(data, position)
        if end is None:
            break
        position = end
    return position


def _next_track(data: bytes, position: int, mended: list[str]) -> int:
    """Position of the next track of this file, -1 where there is none."""
    aliens_end = _aliens_end(data, position)
    if data[aliens_end : aliens_end + 4] == b"MTrk":
        return aliens_end
    found = data.find(b"MTrk", position)
    if found < 0 or data.find(b"MThd", position, found) >= 0:
        return -1
    mended.append("chunks")
    return found
