"""Which pieces of a folder are like one: cosines of their vectors, after the folder's mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meloformer.errors import ConfigError, MidiError
from meloformer.shards.sources import MIDI_SUFFIXES

# Files are read one by one, as they lie there.
_SUFFIXES = tuple(suffix for suffix in MIDI_SUFFIXES if not suffix.endswith(".gz"))
_LEAST_FILES = 2


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Files of a folder, the most similar first.

    Args:
        files: with the cosine of each, from 1 (alike) to -1.
        skipped: files that cannot be read, and why.
    """

    files: tuple[tuple[Path, float], ...]
    skipped: tuple[tuple[Path, str], ...]


def midi_files(folder: Path, *, besides: Path | None = None) -> list[Path]:
    """MIDI files of a folder and of all below it, in the order of their names.

    Args:
        folder: to look through.
        besides: left out where it is among them.

    Raises:
        ConfigError: no such folder, or fewer files than can be ranked.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; allowed: a folder with MIDI files")
    own = None if besides is None else besides.resolve()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file() and path.resolve() != own
    ]
    _check_enough(folder, len(found))
    return found


def rank(
    vector: np.ndarray,
    folder: Path,
    files: Sequence[Path],
    vector_of: Callable[[Path], np.ndarray],
    *,
    on_file: Callable[[], None] | None = None,
) -> Ranking:
    """Rank files by the cosine of their vectors to one.

    The mean over the folder's files is taken from every vector and from the one: without that all
    cosines are near 1, for all music shares most of a summary.

    Args:
        vector: (D,) of the piece that is asked about.
        folder: for messages.
        files: of the folder.
        vector_of: (D,) of a file; what raises MidiError is skipped and counted.
        on_file: called after each file.

    Raises:
        ConfigError: too few files can be read.
    """
    vectors, skipped = {}, []
    for path in files:
        try:
            vectors[path] = vector_of(path)
        except MidiError as error:
            skipped.append((path, str(error)))
        if on_file is not None:
            on_file()
    _check_enough(folder, len(vectors), len(skipped))
    values = cosines(vector, np.stack(list(vectors.values())))
    order = np.argsort(-values, kind="stable")
    paths = list(vectors)
    return Ranking(
        files=tuple((paths[place], float(values[place])) for place in order),
        skipped=tuple(skipped),
    )


def cosines(vector: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) float64 cosines after the others' mean is taken away; 0 where nothing is left.

    Args:
        vector: (D,).
        others: (N, D).

    >>> cosines(np.array([2.0, 5.0]), np.array([[2.0, 5.0], [0.0, 5.0]])).tolist()
    [1.0, -1.0]
    """
    mean = others.mean(axis=0, dtype=np.float64)
    one, many = vector - mean, others - mean
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return np.divide(many @ one, lengths, out=np.zeros(len(many)), where=lengths > 0)


def _check_enough(folder: Path, found: int, num_skipped: int = 0) -> None:
    if found < _LEAST_FILES:
        skipped = f", and {num_skipped} that cannot be read" if num_skipped else ""
        raise ConfigError(
            f"{folder}: found {found} MIDI files{skipped}; allowed: {_LEAST_FILES} or more, since "
            "they are ranked against their mean"
        )
