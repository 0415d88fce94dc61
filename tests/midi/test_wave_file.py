import wave
from pathlib import Path

import numpy as np
import pytest

from meloformer.midi.wave_file import write_wave


def read(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples.reshape(-1, 2), file.getframerate()


def test_samples_come_back_in_sixteen_bits_left_and_right_apart(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-1, 1, (1000, 2)).astype(np.float32)
    write_wave(sound, 44_100, tmp_path / "a.wav")
    samples, rate = read(tmp_path / "a.wav")
    assert rate == 44_100
    assert samples / 32767 == pytest.approx(sound, abs=1 / 32767)


def test_one_channel_is_heard_on_both_sides_and_too_loud_does_not_wrap_around(tmp_path) -> None:
    write_wave(np.array([0.0, 2.0, -2.0], np.float32), 8000, tmp_path / "a.wav")
    assert read(tmp_path / "a.wav")[0].tolist() == [[0, 0], [32767, 32767], [-32767, -32767]]
