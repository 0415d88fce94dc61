"""MIDI files byte by byte, so that no library stands between the test and the format."""

from collections.abc import Iterable

Event = tuple[int, bytes]  # tick, message


def note(tick: int, duration: int, pitch: int, velocity: int = 64, channel: int = 0) -> list[Event]:
    return [
        (tick, bytes([0x90 | channel, pitch, velocity])),
        (tick + duration, bytes([0x80 | channel, pitch, 0])),
    ]


def program(number: int, channel: int = 0, tick: int = 0) -> list[Event]:
    return [(tick, bytes([0xC0 | channel, number]))]


def controller(tick: int, number: int, value: int, channel: int = 0) -> list[Event]:
    return [(tick, bytes([0xB0 | channel, number, value]))]


def pedal(start: int, end: int, channel: int = 0) -> list[Event]:
    return controller(start, 64, 127, channel) + controller(end, 64, 0, channel)


def bend(tick: int, channel: int = 0) -> list[Event]:
    return [(tick, bytes([0xE0 | channel, 1, 70]))]


def metre(tick: int, numerator: int, denominator: int) -> list[Event]:
    """`denominator` a power of two, or 0 for one that the format cannot mean."""
    exponent = denominator.bit_length() - 1 if denominator else 200
    return [(tick, bytes([0xFF, 0x58, 4, numerator, exponent, 24, 8]))]


def tempo(tick: int, microseconds_per_quarter: int) -> list[Event]:
    return [(tick, b"\xff\x51\x03" + microseconds_per_quarter.to_bytes(3, "big"))]


def midi_file(*tracks: Iterable[Iterable[Event]], ticks_per_quarter: int = 480) -> bytes:
    """A file of format 1: each track a list of what the functions above return."""
    header = (
        b"MThd"
        + (6).to_bytes(4, "big")
        + (1).to_bytes(2, "big")
        + len(tracks).to_bytes(2, "big")
        + ticks_per_quarter.to_bytes(2, "big")
    )
    return header + b"".join(
        _track([event for part in track for event in part]) for track in tracks
    )


def _track(events: list[Event]) -> bytes:
    body, now = b"", 0
    # At one tick: note-offs, then what is not a note, then note-ons; otherwise as listed.
    rank = {0x80: 0, 0x90: 2}
    for tick, message in sorted(events, key=lambda e: (e[0], rank.get(e[1][0] & 0xF0, 1))):
        body += _variable_length(tick - now) + message
        now = tick
    body += b"\x00\xff\x2f\x00"
    return b"MTrk" + len(body).to_bytes(4, "big") + body


def _variable_length(value: int) -> bytes:
    out = bytes([value & 127])
    while value := value >> 7:
        out = bytes([128 | (value & 127)]) + out
    return out
