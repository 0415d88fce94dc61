"""Instruments measured: when, how long, how loud, which pitch; by the samples that they give."""

import sys
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.midi.grid import METRE_INDEX, TEMPOS_BPM
from meloformer.midi.instrument_sound import SAMPLE_RATE, TAIL_SECONDS, Instruments
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.sound import note_seconds
from tests.midi.pieces import Note, canonical_piece
from tests.midi.sound_bank import sine_bank

C4_HERTZ = 261.63
CHURCH_ORGAN = 19
WOODBLOCK = 76


def tempo(bpm: float) -> int:
    return int(np.abs(np.asarray(TEMPOS_BPM) - bpm).argmin())


def piece(notes: list[Note], *, bpm: float = 120, num_bars: int = 1) -> QuantisedPiece:
    return canonical_piece([METRE_INDEX[4, 4]] * num_bars, [tempo(bpm)] * num_bars, notes)


def strongest_hertz(sound: np.ndarray) -> float:
    mono = sound.mean(axis=1)
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(mono))


@pytest.fixture(scope="module")
def own_voices() -> Instruments:
    pytest.importorskip("libsonare")
    return Instruments.load()


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Instruments:
    pytest.importorskip("libsonare")
    path = tmp_path_factory.mktemp("bank") / "sine.sf2"
    path.write_bytes(sine_bank())
    return Instruments.load(path)


# Piano, nylon-string guitar, violin, cello, strings, trumpet, horn, alto sax, oboe, flute, pad.
@pytest.mark.parametrize("program", [0, 24, 40, 42, 48, 56, 60, 65, 68, 73, 88])
def test_middle_c_of_an_instrument_is_strongest_at_261_6_hertz(own_voices, program: int) -> None:
    sound = own_voices.play(piece([(0, 1 + program, 0, 60, 48, 98)]))
    assert strongest_hertz(sound[:SAMPLE_RATE]) == pytest.approx(C4_HERTZ, abs=1.5)


def test_middle_c_of_an_organ_has_its_pitch_among_the_partials_of_its_stops(own_voices) -> None:
    sound = own_voices.play(piece([(0, 1 + CHURCH_ORGAN, 0, 60, 48, 98)])).mean(axis=1)
    spectrum = np.abs(np.fft.rfft(sound[:SAMPLE_RATE] * np.hanning(SAMPLE_RATE)))
    near = int(spectrum[252:272].argmax()) + 252  # a second of sound: one hertz each
    assert near == pytest.approx(C4_HERTZ, abs=1.5)
    assert spectrum[near] > 0.3 * spectrum.max()


def test_a_note_fills_its_time_loudly_and_then_is_silent(own_voices) -> None:
    sound = own_voices.play(piece([(0, 1, 0, 60, 48, 98)]))
    assert sound.dtype == np.float32 and sound.shape[1] == 2
    assert len(sound) / SAMPLE_RATE == pytest.approx(1.0 + TAIL_SECONDS, abs=0.1)
    assert np.abs(sound).max() == pytest.approx(0.9, abs=1e-4)
    assert np.abs(sound[-1]).max() == 0


@pytest.mark.parametrize(("pitch", "hertz"), [(60, C4_HERTZ), (72, 2 * C4_HERTZ)])
def test_the_notes_of_a_bank_are_its_samples_at_the_pitch_that_is_asked(
    bank, pitch: int, hertz: float
) -> None:
    sound = bank.play(piece([(0, 1, 0, pitch, 48, 98)])).mean(axis=1)[: int(0.9 * SAMPLE_RATE)]
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    frequency = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    # A sine has no overtones; every instrument of libsonare's own has.
    assert power[np.abs(frequency - hertz) < 15].sum() / power.sum() > 0.98


def test_notes_sound_when_note_seconds_says_through_every_change_of_tempo(own_voices) -> None:
    metres = [METRE_INDEX[metre] for metre in ((4, 4), (3, 4), (6, 8), (4, 4))]
    tempos = [tempo(bpm) for bpm in (100, 240, 90, 140)]
    notes = [(bar, 0, 0, WOODBLOCK, 24, 126) for bar in range(4)]
    music = canonical_piece(metres, tempos, [*notes, (3, 0, 72, WOODBLOCK, 24, 126)])
    onset_seconds, end_seconds = note_seconds(music)
    sound = np.abs(own_voices.play(music)).max(axis=1)
    assert len(sound) / SAMPLE_RATE == pytest.approx(end_seconds.max() + TAIL_SECONDS, abs=0.1)
    for onset in onset_seconds:
        first = max(int((onset - 0.2) * SAMPLE_RATE), 0)
        near = sound[first : int((onset + 0.2) * SAMPLE_RATE)]
        heard = (first + np.flatnonzero(near > 0.2 * near.max())[0]) / SAMPLE_RATE
        assert heard == pytest.approx(onset, abs=0.01)


def test_the_seventeenth_instrument_sounds_as_it_does_alone(own_voices) -> None:
    low = [(0, 1 + 4 * number, 0, 60, 2, 2) for number in range(16)]
    last = (1, 81, 0, 60, 24, 126)
    together = own_voices.play(piece([*low, last], bpm=240, num_bars=2))
    alone = own_voices.play(piece([last], bpm=240, num_bars=2))
    # Where in its swing an oscillator begins is nobody's business, how strong each partial is, is.
    bar_two = slice(SAMPLE_RATE, int(1.25 * SAMPLE_RATE))
    window = np.hanning(bar_two.stop - bar_two.start)
    partials = [np.abs(np.fft.rfft(s[bar_two].mean(1) * window)) for s in (together, alone)]
    assert np.corrcoef(partials)[0, 1] > 0.95


@pytest.mark.slow
def test_every_program_and_every_drum_makes_sound(own_voices) -> None:
    players = [(1 + program, 60) for program in range(128)] + [(0, key) for key in range(35, 82)]
    for first in range(0, len(players), 15):
        some = players[first : first + 15]
        notes = [(bar, player, 0, pitch, 24, 126) for bar, (player, pitch) in enumerate(some)]
        music = piece(notes, bpm=240, num_bars=len(notes))
        sound = np.abs(own_voices.play(music))
        for onset, who in zip(note_seconds(music)[0], some, strict=True):
            heard = sound[int(onset * SAMPLE_RATE) : int((onset + 0.5) * SAMPLE_RATE)]
            assert heard.max() > 1e-3, who


def test_without_libsonare_the_refusal_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "libsonare", None)
    with pytest.raises(ConfigError, match=r"libsonare.*pip install 'meloformer\[audio\]'"):
        Instruments.load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "found no sound bank"),
        (bytes(range(256)) * 40, "found no sound bank"),
        (sine_bank()[:20_000], "found no sound bank"),
        (sine_bank(version=3), r"packed samples \(.sf3\), allowed: .sf2"),
    ],
)
def test_what_is_no_bank_is_refused_in_words(tmp_path: Path, content, said: str) -> None:
    pytest.importorskip("libsonare")
    path = tmp_path / "bank.sf2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        Instruments.load(path)
