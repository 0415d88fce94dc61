"""Sound -> WAV file, 16 bit."""

import wave
from pathlib import Path

import numpy as np

_LARGEST = 2**15 - 1


def write_wave(sound: np.ndarray, sample_rate: int, path: Path) -> None:
    """Write sound in stereo.

    Args:
        sound: (num_samples, 2), or (num_samples,) for the same on both sides; -1..1.
        sample_rate: samples per second.
        path: file to write.
    """
    stereo = np.broadcast_to(sound.reshape(len(sound), -1), (len(sound), 2))
    samples = np.rint(np.clip(stereo, -1, 1) * _LARGEST).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.tobytes())
