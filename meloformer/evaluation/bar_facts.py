"""What is true of each bar of a window: the questions that probes ask of a summary."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from meloformer.midi.grid import METRE_STEPS, NUM_INSTRUMENTS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, NUM_CHORDS, NUM_KEYS, Kind, is_kind
from meloformer.tokens.windows import bar_starts


@dataclass(frozen=True)
class Question:
    """A fact of a bar, and how an answer is scored.

    Args:
        name: what it is called.
        kind: `one` of several classes (share of right answers), `many` of them (F1 over all bars),
            or a `number` (share of its variance that is explained).
        size: columns that it takes.
    """

    name: str
    kind: Literal["one", "many", "number"]
    size: int = 1


QUESTIONS = (
    Question("key", "one", NUM_KEYS),
    Question("chord", "one", NUM_CHORDS),
    Question("tempo", "number"),
    Question("instruments", "many", NUM_INSTRUMENTS),
    Question("density", "number"),
)
_EDGES = np.cumsum([0, *(question.size for question in QUESTIONS)]).tolist()
# Columns of each question, by name.
COLUMNS = {
    question.name: slice(*span) for question, span in zip(QUESTIONS, pairwise(_EDGES), strict=True)
}
NUM_COLUMNS: int = _EDGES[-1]


def bar_facts(window: np.ndarray, key: int | None) -> np.ndarray:
    """(bars, NUM_COLUMNS) float32: classes as ones and zeros, numbers as they are.

    Tempo is log2 of beats per minute, density log2 of 1 + notes per quarter; a piece without a key
    has zeros for it.

    Args:
        window: (T,) tokens of a piece or a window.
        key: of its piece, 0..23.
    """
    starts = bar_starts(window)
    labels = token_labels(window)
    num_bars = len(starts) - 1
    facts = np.zeros((num_bars, NUM_COLUMNS), dtype=np.float32)
    bars = np.arange(num_bars)
    if key is not None:
        facts[:, COLUMNS["key"].start + key] = 1
    facts[bars, COLUMNS["chord"].start + INDEX_OF[window[starts[:-1]]]] = 1
    tempo_B, metre_B = (_held(window, starts, kind) for kind in (Kind.TEMPO, Kind.METRE))
    facts[:, COLUMNS["tempo"].start] = np.log2(TEMPOS_BPM[tempo_B])
    in_bars = labels.bar >= 0
    plays = in_bars & is_kind(labels.kind, Kind.INSTRUMENT)
    facts[labels.bar[plays], COLUMNS["instruments"].start + INDEX_OF[window[plays]]] = 1
    is_note = in_bars & is_kind(labels.kind, Kind.PITCH)
    notes_B = np.bincount(labels.bar[is_note], minlength=num_bars)
    quarters_B = METRE_STEPS[metre_B] / STEPS_PER_QUARTER
    facts[:, COLUMNS["density"].start] = np.log2(1 + notes_B / quarters_B)
    return facts


def _held(window: np.ndarray, starts: np.ndarray, kind: Kind) -> np.ndarray:
    """(bars,) index of the metre or tempo that holds in each bar; the first states both."""
    places = np.flatnonzero(is_kind(KIND_OF.take(window), kind))
    places = places[places >= starts[0]]
    last = np.searchsorted(places, starts[1:]) - 1
    found: np.ndarray = INDEX_OF[window[places[last]]]
    return found
