"""Where every token of a sequence stands: what attention rules, rotary and losses ask of it."""

from dataclasses import dataclass

import numpy as np

from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, Kind, is_kind

HEADER = 0  # instrument label of bar, metre and tempo tokens and of EOS
PREFIX = -1  # bar and instrument label of the prefix

# (V,) What each token says of the instrument and the onset, and whether it does. A control token
# or a bar token ends both, an instrument token the onset.
_STATES_INSTRUMENT = np.isin(KIND_OF, (Kind.CONTROL, Kind.BAR, Kind.INSTRUMENT))
_INSTRUMENT_LABEL = np.where(KIND_OF == Kind.INSTRUMENT, 1 + INDEX_OF, HEADER).astype(np.int32)
_STATES_ONSET = _STATES_INSTRUMENT | (KIND_OF == Kind.ONSET)
_ONSET_LABEL = np.where(KIND_OF == Kind.ONSET, INDEX_OF, 0).astype(np.int32)


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
    kind = KIND_OF.take(ids)
    length = len(ids)
    # The prefix is held from position 0 on, like a bar.
    starts = np.concatenate([[0], np.flatnonzero(is_kind(kind, Kind.BAR))])
    num_bars = len(starts) - 1
    bar = _hold(np.arange(PREFIX, num_bars, dtype=np.int32), starts, length)
    index = np.arange(length, dtype=np.int32) - _hold(starts.astype(np.int32), starts, length)

    states_instrument = np.flatnonzero(_STATES_INSTRUMENT.take(ids))
    instrument = _hold(_INSTRUMENT_LABEL.take(ids[states_instrument]), states_instrument, length)
    instrument[: starts[1] if num_bars else length] = PREFIX
    states_onset = np.flatnonzero(_STATES_ONSET.take(ids))
    onset = _hold(_ONSET_LABEL.take(ids[states_onset]), states_onset, length)
    return TokenLabels(kind=kind, bar=bar, instrument=instrument, onset=onset, index=index)


def _hold(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Let each value last from its start to the next one, the last one to the end.

    >>> _hold(np.array([7, 8]), np.array([0, 3]), 5).tolist()
    [7, 7, 7, 8, 8]
    """
    num_held = np.empty(len(starts), dtype=np.int64)
    num_held[:-1] = starts[1:] - starts[:-1]
    num_held[-1] = length - starts[-1]
    return np.repeat(values, num_held)
