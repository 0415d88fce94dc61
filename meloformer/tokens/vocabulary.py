"""The HID vocabulary as arithmetic: contiguous blocks, each offset derived from the one before.

Blocks, in order: control tokens, then one block per kind. Sizes come from the tables of
midi/grid.py, so a change of the grid changes the fingerprint and nothing else by hand.
"""

import hashlib
import json
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np

from meloformer.errors import TokenError
from meloformer.midi import grid

PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
CHORD_QUALITIES = ("maj", "min", "dim", "aug", "maj7", "min7", "dom7")
NO_CHORD = len(PITCH_CLASSES) * len(CHORD_QUALITIES)
NUM_CHORDS = NO_CHORD + 1
NUM_KEYS = 24  # 0..11 major by tonic, 12..23 minor by tonic

# Upper edges (inclusive) of the bins; the last bin is open.
LENGTH_BIN_BARS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DENSITY_BIN_NOTES_PER_QUARTER = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 28)


class Kind(IntEnum):
    """What a token says; also the row of the per-kind loss table."""

    CONTROL = 0  # PAD BOS CONTINUE EOS FILL
    BAR = 1  # a bar starts; carries its chord
    METRE = 2
    TEMPO = 3
    KEY = 4
    LENGTH = 5  # bars that remain, binned
    DENSITY = 6  # notes per quarter, binned
    INSTRUMENT = 7  # `#D`, `#P0`..`#P127`
    ONSET = 8  # T: steps from the bar line
    PITCH = 9  # P
    DURATION = 10  # L
    VELOCITY = 11  # V


CONTROL_NAMES = ("PAD", "BOS", "CONTINUE", "EOS", "FILL")
PAD, BOS, CONTINUE, EOS, FILL = range(5)

BLOCK_SIZES: dict[Kind, int] = {
    Kind.CONTROL: len(CONTROL_NAMES),
    Kind.BAR: NUM_CHORDS,
    Kind.METRE: len(grid.METRES),
    Kind.TEMPO: len(grid.TEMPOS_BPM),
    Kind.KEY: NUM_KEYS,
    Kind.LENGTH: len(LENGTH_BIN_BARS) + 1,
    Kind.DENSITY: len(DENSITY_BIN_NOTES_PER_QUARTER) + 1,
    Kind.INSTRUMENT: grid.NUM_INSTRUMENTS,
    Kind.ONSET: grid.MAX_BAR_STEPS,
    Kind.PITCH: 128,
    Kind.DURATION: len(grid.DURATION_STEPS),
    Kind.VELOCITY: len(grid.VELOCITIES),
}
_EDGES = np.concatenate([[0], np.cumsum(list(BLOCK_SIZES.values()))])
OFFSET: dict[Kind, int] = {kind: int(_EDGES[kind]) for kind in Kind}
VOCAB_SIZE = int(_EDGES[-1])

# (V,) kind and index within its block, for every token id.
KIND_OF = np.repeat(np.arange(len(Kind)), np.diff(_EDGES)).astype(np.int8)
INDEX_OF = (np.arange(VOCAB_SIZE) - _EDGES[KIND_OF]).astype(np.int32)


def is_kind(kind_T: np.ndarray, kind: Kind) -> np.ndarray:
    """`kind_T == kind`; numpy is several times as slow with a member of an enum as with an int."""
    return kind_T == int(kind)


@dataclass(frozen=True)
class Token:
    """One id, read: its kind and the index inside the kind's block."""

    kind: Kind
    index: int


def token_id(kind: Kind, index: int) -> int:
    """Id of the `index`-th token of a kind.

    >>> INDEX_OF[token_id(Kind.PITCH, 60)].item()
    60
    """
    if not 0 <= index < BLOCK_SIZES[kind]:
        raise ValueError(f"{kind.name} index {index}: allowed 0..{BLOCK_SIZES[kind] - 1}")
    return OFFSET[kind] + index


def token(token_id: int) -> Token:
    """Kind and index of an id."""
    return Token(Kind(int(KIND_OF[token_id])), int(INDEX_OF[token_id]))


def chord_name(index: int) -> str:
    """`Cmaj`, `Amin`, ..., `N` for no chord; index = root * 7 + quality."""
    if index == NO_CHORD:
        return "N"
    root, quality = divmod(index, len(CHORD_QUALITIES))
    return PITCH_CLASSES[root] + CHORD_QUALITIES[quality]


def key_name(index: int) -> str:
    """`C major` (0) ... `B minor` (23)."""
    mode, tonic = divmod(index, 12)
    return f"{PITCH_CLASSES[tonic]} {'minor' if mode else 'major'}"


def instrument_name(index: int) -> str:
    """`#D` for the drum kit, `#P0`..`#P127` for programs."""
    return "#D" if index == grid.DRUMS else f"#P{index - 1}"


def token_name(token_id: int) -> str:
    """Readable name of an id: `BAR:Cmaj`, `4/4`, `#P52`, `T:0`, `P:60`, `L:24`, `V:66`."""
    kind, index = Kind(int(KIND_OF[token_id])), int(INDEX_OF[token_id])
    match kind:
        case Kind.CONTROL:
            return CONTROL_NAMES[index]
        case Kind.BAR:
            return f"BAR:{chord_name(index)}"
        case Kind.METRE:
            return "{}/{}".format(*grid.METRES[index])
        case Kind.TEMPO:
            return f"TEMPO:{grid.TEMPOS_BPM[index]:g}"
        case Kind.KEY:
            return f"KEY:{key_name(index)}"
        case Kind.LENGTH:
            return f"LENGTH:{_bin_name(index, LENGTH_BIN_BARS)}"
        case Kind.DENSITY:
            return f"DENSITY:{_bin_name(index, DENSITY_BIN_NOTES_PER_QUARTER)}"
        case Kind.INSTRUMENT:
            return instrument_name(index)
        case Kind.ONSET:
            return f"T:{index}"
        case Kind.PITCH:
            return f"P:{index}"
        case Kind.DURATION:
            return f"L:{grid.DURATION_STEPS[index]}"
        case Kind.VELOCITY:
            return f"V:{grid.VELOCITIES[index]}"


def _bin_name(index: int, upper_edges: tuple[float, ...]) -> str:
    return f"<={upper_edges[index]:g}" if index < len(upper_edges) else f">{upper_edges[-1]:g}"


def length_bin(num_bars: int | np.ndarray) -> int | np.ndarray:
    """Bin of a number of bars."""
    return np.searchsorted(LENGTH_BIN_BARS, num_bars)


def density_bin(notes_per_quarter: float) -> int:
    """Bin of a note density."""
    return bisect_left(DENSITY_BIN_NOTES_PER_QUARTER, notes_per_quarter)


def vocabulary_json() -> dict:
    """The whole vocabulary as data: blocks with offset and size, and every token's name."""
    return {
        "name": "HID",
        "steps_per_quarter": grid.STEPS_PER_QUARTER,
        "blocks": {k.name: {"offset": OFFSET[k], "size": BLOCK_SIZES[k]} for k in Kind},
        "tokens": [token_name(i) for i in range(VOCAB_SIZE)],
    }


@cache
def fingerprint() -> str:
    """sha256 of the vocabulary; stands in manifests and checkpoints."""
    return _fingerprint_of(vocabulary_json())


def check_fingerprint(found: str, source: str) -> None:
    """Refuse what was written with another vocabulary.

    Args:
        found: the fingerprint that stands there.
        source: what carries it, for the message.

    Raises:
        TokenError: it is not `fingerprint()`.
    """
    if found != fingerprint():
        raise TokenError(
            f"{source} holds tokens of another vocabulary: found fingerprint {found}, allowed "
            f"{fingerprint()}; build it again with this version, or install the version that "
            "wrote it"
        )


def save_vocabulary(path: str | Path) -> None:
    """Write the vocabulary and its fingerprint as JSON.

    Raises:
        TokenError: it cannot be written there.
    """
    document = {"fingerprint": fingerprint(), **vocabulary_json()}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TokenError(
            f"the vocabulary cannot be written to {path}: {error.strerror}; allowed: a file in a "
            "folder that exists and can be written"
        ) from error


def load_vocabulary(path: str | Path) -> dict:
    """Read a saved vocabulary, which must be this one.

    Returns:
        What `vocabulary_json` returns.

    Raises:
        TokenError: no vocabulary stands there, it is damaged, or it is another one.
    """
    remedy = "write it with `python -m meloformer.tokens --output FILE`"
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenError(f"{path} is no vocabulary: {error}; {remedy}") from error
    if not isinstance(document, dict) or not isinstance(document.get("fingerprint"), str):
        raise TokenError(f"{path} is no vocabulary: found no fingerprint; {remedy}")
    said = document.pop("fingerprint")
    check_fingerprint(said, str(path))
    if _fingerprint_of(document) != said:
        raise TokenError(
            f"{path} is damaged: its tokens have fingerprint {_fingerprint_of(document)}, allowed "
            f"the one that it states, {said}; {remedy}"
        )
    return document


def _fingerprint_of(document: dict) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
