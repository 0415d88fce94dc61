"""What stands beside a MIDI file, read back: loud, as long as the piece, at the right pitch."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from meloformer.errors import ConfigError, GenerationError
from meloformer.generation.rendering import RenderingConfig
from meloformer.midi.grid import METRE_INDEX, TEMPOS_BPM
from meloformer.midi.instrument_sound import TAIL_SECONDS
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import canonical_piece
from tests.midi.sound_bank import sine_bank

C4_HERTZ = 261.63


def middle_c(program: int, *, num_bars: int = 2) -> QuantisedPiece:
    """A whole note of an instrument in the first bar, and again in the last; bars of 2 seconds."""
    tempo = int(np.abs(np.asarray(TEMPOS_BPM) - 120).argmin())
    notes = [(bar, 1 + program, 0, 60, 96, 98) for bar in sorted({0, num_bars - 1})]
    return canonical_piece([METRE_INDEX[4, 4]] * num_bars, [tempo] * num_bars, notes)


def heard(path: Path) -> tuple[np.ndarray, int]:
    """Samples, (n, 2) in -1..1, and how many are a second."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return samples / 32768, file.getframerate()


def strongest_hertz(sound: np.ndarray, rate: int) -> float:
    """Of the first note."""
    mono = sound[: int(1.5 * rate)].mean(axis=1)
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono))))
    return float(spectrum.argmax() * rate / len(mono))


@pytest.mark.parametrize(
    ("flags", "tail_seconds"),
    [
        ({"voice": "plain"}, 0.25),
        ({}, TAIL_SECONDS),
        ({"soundfont": "sine.sf2"}, TAIL_SECONDS),
    ],
)
def test_middle_c_is_written_as_long_and_loud_at_its_pitch(
    tmp_path: Path, flags: dict, tail_seconds: float
) -> None:
    if flags != {"voice": "plain"}:
        pytest.importorskip("libsonare")
    if "soundfont" in flags:
        (tmp_path / "sine.sf2").write_bytes(sine_bank())
        flags = {"soundfont": tmp_path / "sine.sf2"}
    rendering = RenderingConfig(piano_roll=False, audio=True, **flags)
    files = rendering.render(middle_c(0), tmp_path / "a.mid", "")
    assert list(files) == [tmp_path / "a.wav"]
    sound, rate = heard(files[0])
    assert len(sound) / rate == pytest.approx(4.0 + tail_seconds, abs=0.1)
    assert strongest_hertz(sound, rate) == pytest.approx(C4_HERTZ, abs=1.5)
    # Loud, and clipped nowhere.
    assert 0.85 < np.abs(sound).max() < 0.95
    assert np.sqrt((sound[:rate] ** 2).mean()) > 0.02


def test_picture_and_sound_are_written_where_they_are_wanted_and_nowhere_else(tmp_path) -> None:
    files = RenderingConfig().render(middle_c(40), tmp_path / "a.mid", "a title")
    assert list(files) == [tmp_path / "a.png"] == list(tmp_path.iterdir())
    assert imread(files[0]).shape[2] in (3, 4)
    config = RenderingConfig(piano_roll=False)
    assert config.sounds_like() is None
    assert not config.render(middle_c(40), tmp_path / "b.mid", "")
    assert RenderingConfig(audio=True, voice="plain").sounds_like() == "sound: plain tones"


def test_who_plays_is_said_with_the_licence() -> None:
    pytest.importorskip("libsonare")
    said = RenderingConfig(audio=True).sounds_like()
    assert said and "libsonare" in said and "Apache-2.0" in said


def test_without_the_extra_sound_is_refused_with_the_line_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "libsonare", None)
    with pytest.raises(ConfigError, match=r"pip install 'meloformer\[audio\]'.*--voice plain"):
        _ = RenderingConfig(audio=True).instruments
    assert RenderingConfig().instruments is None
    assert RenderingConfig(audio=True, voice="plain").instruments is None


def test_flags_that_say_two_things_are_refused() -> None:
    bank = Path("a.sf2")
    for flags in ({"voice": "plain"}, {"soundfont": bank}):
        with pytest.raises(GenerationError, match="without --audio"):
            RenderingConfig(**flags)
    with pytest.raises(GenerationError, match="allowed: one of them"):
        RenderingConfig(audio=True, soundfont=bank, voice="plain")
