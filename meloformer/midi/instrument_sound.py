"""A quantised piece played by General MIDI instruments: libsonare's own voices, or a SoundFont.

libsonare models its instruments, so they need no sound bank whose licence would bind what is heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from meloformer.errors import ConfigError
from meloformer.midi.piece import Piece
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.midi.sound import PEAK, note_seconds
from meloformer.midi.write import midi_bytes

SAMPLE_RATE = 44_100  # Hz
TAIL_SECONDS = 2.0  # for strings, cymbals and the room to die away in
_FADE_SECONDS = 0.5  # what rings on still ends without a click
_MELODIC_CHANNELS = 15  # of the 16 of MIDI, drums have one
_VOICES = 256  # that sound at once before old ones are cut off

# A file says after this mark which release of SoundFont it follows; 3 has packed samples.
_VERSION_MARK, _PACKED = b"ifil", 3


@dataclass(frozen=True)
class Instruments:
    """What a piece is played on.

    Args:
        name: for people, with its licence where it is known.
        bank: content of a SoundFont file; None: libsonare's own voices.
    """

    name: str
    bank: bytes | None = None

    @classmethod
    def load(cls, soundfont: Path | None = None) -> Instruments:
        """Get ready to play.

        Args:
            soundfont: a .sf2 file; programs that it lacks are played by libsonare's own voices.

        Raises:
            ConfigError: libsonare is not installed, or the file is missing or no sound bank.
        """
        try:
            import libsonare
        except ImportError as error:
            raise ConfigError(
                f"instruments want the package libsonare ({error}); install it with "
                "`pip install 'meloformer[audio]'`, or let the piece sound without: --voice plain"
            ) from error
        if soundfont is None:
            return cls(f"voices of libsonare {libsonare.version()}, Apache-2.0")
        try:
            bank = soundfont.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"--soundfont {soundfont}: cannot be read ({error.strerror or error}); "
                "allowed: a .sf2 file"
            ) from error
        if _major_version(bank) == _PACKED:
            raise ConfigError(
                f"--soundfont {soundfont}: found a bank with packed samples (.sf3), allowed: .sf2; "
                "most banks come as .sf2 too, and MuseScore's sf3convert unpacks one"
            )
        try:
            with libsonare.Project() as project:
                project.load_soundfont(bank)
                num_presets = project.soundfont_preset_count()
        except libsonare.SonareError as error:
            raise ConfigError(
                f"--soundfont {soundfont}: found no sound bank ({error}); allowed: a .sf2 file"
            ) from error
        if not num_presets:
            raise ConfigError(
                f"--soundfont {soundfont}: found no instruments in it; allowed: a bank with some"
            )
        return cls(f"{soundfont.name}, {num_presets} instruments", bank)

    def play(self, quantised: QuantisedPiece) -> np.ndarray:
        """Sound of a whole piece.

        Args:
            quantised: with at least one note.

        Returns:
            (num_samples, 2) float32 in -1..1 at `SAMPLE_RATE`; it ends `TAIL_SECONDS` after the
            last note, and the loudest sample is the same in every piece.
        """
        import libsonare

        last = note_seconds(quantised)[1].max() + TAIL_SECONDS
        sound = np.zeros((int(np.ceil(last * SAMPLE_RATE)), 2), np.float32)
        player = libsonare.Sf2InstrumentConfig(polyphony=_VOICES)
        for part in _parts(to_piece(quantised)):
            with libsonare.Project() as project:
                project.set_sample_rate(SAMPLE_RATE)
                if self.bank is not None:
                    project.load_soundfont(self.bank)
                project.import_smf(midi_bytes(part))
                sound += project.bounce_with_sf2_instrument(
                    player, total_frames=len(sound), num_channels=2
                )
        fade = np.linspace(1, 0, int(_FADE_SECONDS * SAMPLE_RATE), dtype=np.float32)
        sound[-len(fade) :] *= fade[:, None]
        return sound * np.float32(PEAK / max(np.abs(sound).max(), 1e-9))


def _parts(piece: Piece) -> Iterator[Piece]:
    """The piece as pieces that find room on the channels of MIDI, drums in the first."""
    drums = [track for track in piece.tracks if track.is_drum]
    melodic = [track for track in piece.tracks if not track.is_drum]
    for first in range(0, max(len(melodic), 1), _MELODIC_CHANNELS):
        tracks = melodic[first : first + _MELODIC_CHANNELS] + (drums if first == 0 else [])
        yield replace(piece, tracks=tuple(tracks))


def _major_version(bank: bytes) -> int:
    """Release of the format that a bank follows; 0 where it does not say."""
    at = bank[:4096].find(_VERSION_MARK)
    return int.from_bytes(bank[at + 8 : at + 10], "little") if at >= 0 else 0
