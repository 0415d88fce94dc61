"""The corpus that needs no download: scores that the PyPI package music21 carries.

Only its files are used; the package itself, slow to import and to parse, is not.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from meloformer.errors import ConfigError
from meloformer.midi.musicxml import num_parts, read_musicxml
from meloformer.midi.write import midi_bytes

# The same chorales in Humdrum are copies and stay out.
_CHORALES = ("bach/bwv*.mxl", "bach/bwv*.xml")
_QUARTETS = (
    "haydn/opus*/movement*.mxl",
    "mozart/k[0-9]*/movement[0-9].mxl",
    "beethoven/opus*.mxl",
    "beethoven/opus*/movement*.mxl",
    "schumann_robert/opus41no1/movement*.mxl",
)
_CHORALE_PARTS = 4
_NOT_CHORALES = {"bwv846"}  # a prelude for keyboard


def chorale_paths() -> list[Path]:
    """Every four-part Bach chorale of the installed music21, sorted.

    The others carry an orchestra along, or several movements.

    Raises:
        ConfigError: music21 is not installed.
    """
    return [path for path in _scores(_CHORALES) if num_parts(path) == _CHORALE_PARTS]


def default_corpus_paths() -> list[Path]:
    """Every Bach chorale and string quartet movement of the installed music21, sorted.

    Raises:
        ConfigError: music21 is not installed.
    """
    return _scores(_CHORALES + _QUARTETS)


def score_to_midi(path: Path) -> bytes:
    """A score as the bytes of a MIDI file; the same bytes for the same score.

    Raises:
        MidiError: the score cannot be read.
    """
    return midi_bytes(read_musicxml(path))


def _scores(patterns: tuple[str, ...]) -> list[Path]:
    """Scores of the installed music21, sorted.

    Raises:
        ConfigError: music21 is not installed.
    """
    package = find_spec("music21")
    if package is None or package.origin is None:
        raise ConfigError(
            "default corpus: package music21 not found; it carries the scores; "
            "install the extra `shards`, or name a folder of MIDI files"
        )
    corpus = Path(package.origin).parent / "corpus"
    paths = (path for pattern in patterns for path in corpus.glob(pattern))
    return sorted(path for path in paths if path.stem not in _NOT_CHORALES)
