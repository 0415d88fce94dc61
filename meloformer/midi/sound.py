"""A quantised piece for the ear: plain synthesis, no sound bank, nothing to install.

Enough to hear whether music is music: pitch, rhythm, loudness and which notes are drums.
midi/instrument_sound.py plays the same piece on instruments.
"""

from __future__ import annotations

import numpy as np

from meloformer.midi.grid import DRUMS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.quantised import QuantisedPiece

SAMPLE_RATE = 16_000  # Hz; enough for the four partials of most notes
_TAIL_SECONDS = 0.25  # that a note takes to die away after its end
_ATTACK_SECONDS = 0.005  # without it, each onset clicks
_HALF_LIFE_SECONDS = 0.4  # of a held note, as of a plucked string
_PARTIALS = (1.0, 0.4, 0.2, 0.1)  # amplitudes of the fundamental and its multiples
_DRUM_SECONDS = 0.15
_LOWEST_CYMBAL = 42  # General MIDI: kicks, snares and low toms have the keys below
PEAK = 0.9  # of the loudest sample


def synthesise(
    quantised: QuantisedPiece, *, max_seconds: float = 60.0, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Sound of a piece.

    Args:
        quantised: the piece.
        max_seconds: what comes later is left out.
        sample_rate: samples per second.

    Returns:
        (num_samples,) float32 in -1..1, mono; the loudest sample is the same in every piece, and
        without notes there is one sample of silence.
    """
    onset_seconds, end_seconds = note_seconds(quantised)
    heard = np.flatnonzero(onset_seconds < max_seconds)
    if not len(heard):
        return np.zeros(1, np.float32)
    last = min(end_seconds[heard].max() + _TAIL_SECONDS, max_seconds)
    sound = np.zeros(int(np.ceil(last * sample_rate)), np.float32)
    noise = np.random.default_rng(0)  # the same piece sounds the same
    for note in heard.tolist():
        pitch, loudness = int(quantised.pitch[note]), quantised.velocity[note] / 127
        if quantised.instrument[note] == DRUMS:
            wave = _drum(pitch, noise, sample_rate)
        else:
            wave = _tone(pitch, end_seconds[note] - onset_seconds[note], sample_rate)
        start = int(onset_seconds[note] * sample_rate)
        part = sound[start : start + len(wave)]
        part += loudness * wave[: len(part)]
    return sound * np.float32(PEAK / max(np.abs(sound).max(), 1e-9))


def note_seconds(quantised: QuantisedPiece) -> tuple[np.ndarray, np.ndarray]:
    """Onset and end of each note, (num_notes,) float64 seconds from the start of the piece."""
    steps = quantised.bar_start_steps
    seconds_per_step = 60 / (TEMPOS_BPM[quantised.bar_tempo] * STEPS_PER_QUARTER)
    clock = np.concatenate([[0.0], np.cumsum(np.diff(steps) * seconds_per_step)])
    # A bar has one tempo, so time runs straight between bar lines; a note may end after the last.
    after_last = seconds_per_step[-1] if len(seconds_per_step) else 0.0
    onset_steps = quantised.start_steps
    end_steps = onset_steps + quantised.duration_steps
    beyond = np.maximum(end_steps - steps[-1], 0) * after_last
    return np.interp(onset_steps, steps, clock), np.interp(end_steps, steps, clock) + beyond


def _tone(pitch: int, seconds: float, sample_rate: int) -> np.ndarray:
    """A decaying tone with a few partials, (n,) float32."""
    time = np.arange(int((seconds + _TAIL_SECONDS) * sample_rate)) / sample_rate
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    wave = np.zeros_like(time)
    for number, amplitude in enumerate(_PARTIALS, start=1):
        if number * hertz < sample_rate / 2:  # above, it would fold back as another pitch
            wave += amplitude * np.sin(2 * np.pi * number * hertz * time)
    release = np.clip(1 - (time - seconds) / _TAIL_SECONDS, 0, 1)
    envelope = np.minimum(time / _ATTACK_SECONDS, 1) * 0.5 ** (time / _HALF_LIFE_SECONDS) * release
    return (wave * envelope).astype(np.float32)


def _drum(key: int, noise: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A burst of noise, deep for drums and hissing for cymbals, (n,) float32."""
    # Noise is shaped sample by sample, so its colour hangs on the rate at which that is done.
    time = np.arange(int(_DRUM_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    burst = noise.standard_normal(len(time))
    if key < _LOWEST_CYMBAL:
        # Running means let the low half through, and a falling sine is the skin.
        burst = np.convolve(burst, np.full(8, 1 / 8), mode="same")
        burst += np.sin(2 * np.pi * 40 * time * (1 + np.exp(-time / 0.03)))
    else:
        burst = np.diff(burst, prepend=0.0) / 2
    wave = burst * np.exp(-time / (_DRUM_SECONDS / 5))
    if sample_rate != SAMPLE_RATE:
        wave = np.interp(np.arange(int(_DRUM_SECONDS * sample_rate)) / sample_rate, time, wave)
    return wave.astype(np.float32)
