"""Where every token of a sequence stands: what attention rules, rotary and losses ask of it."""

from dataclasses import dataclass

import numpy as np

from meloformer.tokens.vocabulary import EOS, INDEX_OF, KIND_OF, Kind

HEADER = 0  # instrument label of bar, metre and tempo tokens and of EOS
PREFIX = -1  # bar and instrument label of the prefix


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenLabels:
    """Arrays (T,), int32 but for `kind`.

    Args:
        kind: int8, a Kind.
        bar: bar of the sequence, 0..; -1 prefix. EOS belongs to the last bar.
        instrument: 0 header tokens and EOS, 1 + instrument of midi/grid.py otherwise; -1 prefix.
        onset: steps from the bar line of the onset in force, from its own token on; 0 before.
        index: position in the bar (bar token = 0) or in the prefix.
    """

    kind: np.ndarray
    bar: np.ndarray
    instrument: np.ndarray
    onset: np.ndarray
    index: np.ndarray


def token_labels(ids: np.ndarray) -> TokenLabels:
    """Label the tokens of a checked sequence: a piece, a window, or the beginning of one.

    Args:
        ids: (T,) with its prefix and without padding.

    >>> from meloformer.tokens.vocabulary import BOS, OFFSET
    >>> segment = (Kind.BAR, Kind.METRE, Kind.TEMPO, Kind.INSTRUMENT, Kind.ONSET, Kind.PITCH)
    >>> labels = token_labels(np.array([BOS] + [OFFSET[kind] for kind in segment]))
    >>> labels.bar.tolist(), labels.instrument.tolist()
    ([-1, 0, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 1, 1, 1])
    """
    kind = KIND_OF[ids]
    position = np.arange(len(ids), dtype=np.int32)
    is_bar = kind == Kind.BAR
    bar = np.cumsum(is_bar, dtype=np.int32) - 1
    bar_start = last_position(is_bar, position)

    # Every statement holds until the next of its kind, or until what is above it starts anew.
    states_instrument = is_bar | (kind == Kind.INSTRUMENT) | (ids == EOS)
    instrument_there = np.where(kind == Kind.INSTRUMENT, 1 + INDEX_OF[ids], HEADER)
    instrument = instrument_there[last_position(states_instrument, position)]
    states_onset = states_instrument | (kind == Kind.ONSET)
    onset_there = np.where(kind == Kind.ONSET, INDEX_OF[ids], 0)
    onset = onset_there[last_position(states_onset, position)]
    return TokenLabels(
        kind=kind,
        bar=bar,
        instrument=np.where(bar < 0, PREFIX, instrument).astype(np.int32, copy=False),
        onset=onset.astype(np.int32, copy=False),
        index=position - bar_start,
    )


def last_position(is_statement: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Position of the last statement at or before each token; 0 where there is none yet.

    >>> last_position(np.array([False, True, False, True]), np.arange(4)).tolist()
    [0, 1, 1, 3]
    """
    return np.maximum.accumulate(np.where(is_statement, position, 0))
