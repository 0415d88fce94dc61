"""What was asked for against what is heard: one number per wish, between 0 and 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meloformer.errors import ConfigError
from meloformer.evaluation.second_key import relative_key, second_key
from meloformer.midi.filters import bar_seconds
from meloformer.midi.grid import METRE_INDEX, METRE_STEPS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import NUM_KEYS, density_bin, length_bin

# Upper edges (inclusive) of the bins of tempo that have names, Grave to Presto; above: Prestissimo.
# Source: Melechovsky et al. 2024, Mustango; text2midi (Bhandari et al. 2025) takes them over.
TEMPO_BIN_EDGES_BPM = (40, 60, 70, 90, 110, 140, 160, 210)

# In the order of the tables.
METRICS = (
    "tempo_bin",
    "tempo_near",
    "key",
    "key_near",
    "metre",
    "instruments",
    "density",
    "density_near",
    "length",
)
MEANING = {
    "tempo_bin": "tempo falls into the same named bin (TB)",
    "tempo_near": "the same bin or the one beside it (TBT)",
    "key": "same key, by the second finder (CK)",
    "key_near": "same key or its relative (CKD)",
    "metre": "same metre in most bars",
    "instruments": "F1 of the set of instruments",
    "density": "notes per quarter fall into the same bin",
    "density_near": "the same bin or the one beside it",
    "length": "the bars that the text is taken to ask for fall into the same bin",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a text asks for; None where it does not say.

    Args:
        tempo_bpm: quarters per minute.
        metre: index into METRES.
        key: 0..23.
        instruments: of the grid, all that play.
        density: bin of notes per quarter.
        length: bin of bars.
    """

    tempo_bpm: float | None = None
    metre: int | None = None
    key: int | None = None
    instruments: frozenset[int] | None = None
    density: int | None = None
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a listener finds in music.

    Args:
        tempo_bpm: half of the playing time is no faster, half no slower.
        metre: index into METRES of the one that lasts for most quarters.
        key: by `second_key`; None of drums alone.
        instruments: those that play a note.
        density: bin of notes per quarter.
        length: bin of the bars that the text is taken to ask for; None where nobody listened.
    """

    tempo_bpm: float
    metre: int
    key: int | None
    instruments: frozenset[int]
    density: int
    length: int | None


def tempo_bin(tempo_bpm: float) -> int:
    """Named bin of a tempo, 0 (Grave) to 8 (Prestissimo).

    >>> tempo_bin(40), tempo_bin(40.5), tempo_bin(240)
    (0, 1, 8)
    """
    return int(np.searchsorted(TEMPO_BIN_EDGES_BPM, tempo_bpm))


def hear(music: QuantisedPiece, *, length: int | None = None) -> Heard:
    """Measure music, whoever wrote it.

    Args:
        music: at least one bar.
        length: see `Heard`: how long music is, whoever wants it written decides.
    """
    steps = METRE_STEPS[music.bar_metre]
    reached = np.cumsum(np.bincount(music.bar_tempo, bar_seconds(music)))
    return Heard(
        tempo_bpm=float(TEMPOS_BPM[np.searchsorted(reached, reached[-1] / 2)]),
        metre=int(np.bincount(music.bar_metre, steps).argmax()),
        key=second_key(music),
        instruments=frozenset(np.unique(music.instrument).tolist()),
        density=density_bin(music.num_notes * STEPS_PER_QUARTER / int(steps.sum())),
        length=length,
    )


def score(wanted: Wanted, heard: Heard) -> dict[str, float]:
    """One number per metric; nan where nothing was wanted, or nobody could hear it.

    A piece without a key, of drums alone, misses every key.
    """
    scores = dict.fromkeys(METRICS, np.nan)
    if wanted.tempo_bpm is not None:
        apart = abs(tempo_bin(wanted.tempo_bpm) - tempo_bin(heard.tempo_bpm))
        scores["tempo_bin"], scores["tempo_near"] = float(apart == 0), float(apart <= 1)
    if wanted.key is not None:
        scores["key"] = float(heard.key == wanted.key)
        scores["key_near"] = float(heard.key in (wanted.key, relative_key(wanted.key)))
    if wanted.metre is not None:
        scores["metre"] = float(heard.metre == wanted.metre)
    if wanted.instruments:
        scores["instruments"] = f1(wanted.instruments, heard.instruments)
    if wanted.density is not None:
        apart = abs(wanted.density - heard.density)
        scores["density"], scores["density_near"] = float(apart == 0), float(apart <= 1)
    if wanted.length is not None and heard.length is not None:
        scores["length"] = float(heard.length == wanted.length)
    return scores


def f1(wanted: frozenset[int], found: frozenset[int]) -> float:
    """Harmonic mean of precision and recall of a set.

    >>> f1(frozenset({1, 2}), frozenset({2, 3, 4, 5}))
    0.3333333333333333
    """
    return 2 * len(wanted & found) / max(len(wanted) + len(found), 1)


def wanted_of(attributes: Mapping[str, Any], mentions: Sequence[Any] | None = None) -> Wanted:
    """What a caption asks for.

    Args:
        attributes: of its window, as captions.jsonl has them.
        mentions: the attributes that the sentence says; None takes all for said. Instruments
            named in part (an object instead of the word) are no wish for those alone.

    Raises:
        ConfigError: an attribute that no piece can have.
    """
    all_said = mentions is None
    said = {name for name in mentions or () if isinstance(name, str)}

    def of(attribute: str, field: str) -> Any:
        return attributes.get(field) if all_said or attribute in said else None

    tempo, metre, key = of("tempo", "tempo_bpm"), of("metre", "metre"), of("key", "key_index")
    instruments, bars = of("instruments", "instruments"), of("length", "bars")
    metre_index = None if metre is None else METRE_INDEX.get(_metre(metre))
    if metre is not None and metre_index is None:
        raise ConfigError(f"caption with metre {metre!r}: allowed are those of the grid, as 4/4")
    if key is not None and key not in range(NUM_KEYS):
        raise ConfigError(f"caption with key_index {key!r}: allowed are 0 to {NUM_KEYS - 1}")
    return Wanted(
        tempo_bpm=None if tempo is None else float(tempo),
        metre=metre_index,
        key=key,
        instruments=None if instruments is None else frozenset(instruments),
        density=of("density", "density_bin"),
        length=None if bars is None else int(length_bin(int(bars))),
    )


def _metre(text: str) -> tuple[int, int]:
    numerator, _, denominator = str(text).partition("/")
    if numerator.isdigit() and denominator.isdigit():
        return int(numerator), int(denominator)
    return 0, 0
