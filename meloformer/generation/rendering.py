"""What stands beside a MIDI file: the piece to see, and the piece to hear."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from meloformer.errors import GenerationError
from meloformer.midi import instrument_sound
from meloformer.midi.instrument_sound import Instruments
from meloformer.midi.piano_roll import save_piano_roll
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.sound import synthesise
from meloformer.midi.wave_file import write_wave

Voice = Literal["instruments", "plain"]


@dataclass(frozen=True, kw_only=True)
class RenderingConfig:
    """Flags of what is written beside a MIDI file, under the same name.

    Args:
        piano_roll: draw the piece, with its chords, as .png.
        audio: let the piece sound, as .wav.
        voice: what it sounds like: the instruments of General MIDI as libsonare models them
            (Apache-2.0; pip install 'meloformer[audio]'), or plain tones, which want no package.
        soundfont: sound bank (.sf2) with better instruments; those it lacks are modelled.
    """

    piano_roll: bool = True
    audio: bool = False
    voice: Voice = "instruments"
    soundfont: Path | None = None

    def __post_init__(self) -> None:
        if not self.audio and (self.soundfont is not None or self.voice == "plain"):
            flag = "--voice" if self.soundfont is None else "--soundfont"
            raise GenerationError(f"{flag} without --audio: allowed: --audio beside it")
        if self.soundfont is not None and self.voice == "plain":
            raise GenerationError(
                f"--soundfont {self.soundfont} with --voice plain: allowed: one of them"
            )

    @cached_property
    def instruments(self) -> Instruments | None:
        """What plays; None for plain tones, and where nothing is to sound.

        Raises:
            ConfigError: what the flags ask for is not installed, or is no sound bank.
        """
        if not self.audio or self.voice == "plain":
            return None
        return Instruments.load(self.soundfont)

    def sounds_like(self) -> str | None:
        """What plays, in words; None where nothing is to sound."""
        if not self.audio:
            return None
        return f"sound: {self.instruments.name if self.instruments else 'plain tones'}"

    def render(self, piece: QuantisedPiece, path: Path, title: str) -> Sequence[Path]:
        """Write what was asked for.

        Args:
            piece: with at least one note.
            path: its MIDI file.
            title: a line above the picture.

        Returns:
            The files.
        """
        files = []
        if self.piano_roll:
            files.append(path.with_suffix(".png"))
            save_piano_roll(piece, files[-1], title=title)
        if self.audio:
            files.append(path.with_suffix(".wav"))
            rate = instrument_sound.SAMPLE_RATE
            if self.instruments is None:
                sound = synthesise(piece, max_seconds=float("inf"), sample_rate=rate)
            else:
                sound = self.instruments.play(piece)
            write_wave(sound, rate, files[-1])
        return files
