"""A SoundFont written byte by byte: one instrument, which is a sine at middle C."""

import struct

import numpy as np

RATE = 44_100
# As many samples as hold 89 periods of 261.63 Hz, so that the loop has no seam.
_PERIODS, _LENGTH = 89, 15_002
# Generators: which sample or instrument, and that the sample is looped.
_INSTRUMENT, _SAMPLE_MODES, _SAMPLE = 41, 54, 53


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _name(text: str) -> bytes:
    return text.encode().ljust(20, b"\0")


def sine_bank(*, version: int = 2) -> bytes:
    """The content of a .sf2 file."""
    phase = 2 * np.pi * _PERIODS * np.arange(_LENGTH) / _LENGTH
    samples = (np.sin(phase) * 20_000).astype("<i2").tobytes() + b"\0" * 92
    info = _chunk(b"ifil", struct.pack("<HH", version, 1)) + _chunk(b"INAM", b"sine\0\0")
    preset = _name("sine") + struct.pack("<HHHIII", 0, 0, 0, 0, 0, 0)
    last_preset = _name("EOP") + struct.pack("<HHHIII", 0, 0, 1, 0, 0, 0)
    instrument_generators = struct.pack("<HHHHHH", _SAMPLE_MODES, 1, _SAMPLE, 0, 0, 0)
    header = _name("sine") + struct.pack("<IIIIIBbHH", 0, _LENGTH, 0, _LENGTH, RATE, 60, 0, 0, 1)
    articulation = b"".join(
        [
            _chunk(b"phdr", preset + last_preset),
            _chunk(b"pbag", struct.pack("<HHHH", 0, 0, 1, 0)),
            _chunk(b"pmod", b"\0" * 10),
            _chunk(b"pgen", struct.pack("<HHHH", _INSTRUMENT, 0, 0, 0)),
            _chunk(b"inst", _name("sine") + struct.pack("<H", 0) + _name("EOI") + b"\1\0"),
            _chunk(b"ibag", struct.pack("<HHHH", 0, 0, 2, 0)),
            _chunk(b"imod", b"\0" * 10),
            _chunk(b"igen", instrument_generators),
            _chunk(b"shdr", header + _name("EOS") + b"\0" * 26),
        ]
    )
    body = _chunk(b"LIST", b"INFO" + info)
    body += _chunk(b"LIST", b"sdta" + _chunk(b"smpl", samples))
    body += _chunk(b"LIST", b"pdta" + articulation)
    return _chunk(b"RIFF", b"sfbk" + body)
