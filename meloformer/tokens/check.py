"""Whether a finished sequence follows the grammar, asked of all its tokens at once."""

import numpy as np

from meloformer.errors import TokenError
from meloformer.midi.grid import METRE_STEPS
from meloformer.tokens.filling import is_filled
from meloformer.tokens.filling_grammar import FilledState, grammar_of
from meloformer.tokens.grammar import FOLLOWS
from meloformer.tokens.vocabulary import (
    BOS,
    CONTINUE,
    EOS,
    INDEX_OF,
    KIND_OF,
    OFFSET,
    VOCAB_SIZE,
    Kind,
    is_kind,
)

# (12, 12) bool: [kind before, kind] inside the bars.
_FOLLOWS = np.zeros((len(Kind), len(Kind)), dtype=bool)
for _before, _kinds in FOLLOWS.items():
    _FOLLOWS[_before, list(_kinds)] = True


def check(ids: np.ndarray) -> None:
    """Let a piece, or a window that ends with a finished bar, pass.

    Args:
        ids: (T,) integers.

    Raises:
        TokenError: names the first token that breaks the grammar and what is allowed there.
    """
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TokenError(
            f"tokens of shape {ids.shape} and type {ids.dtype}; allowed: one dimension of integers"
        )
    position = first_violation(ids)
    if position is None:
        return
    state = grammar_of(ids[:position])
    raise state.refusal(int(ids[position]) if position < len(ids) else None)


def first_violation(ids: np.ndarray) -> int | None:
    """Position of the first token that breaks the grammar; T where it is the end that comes early.

    Every test below is right up to the first violation, so the earliest of them is the first.

    Args:
        ids: (T,) integers.
    """
    if is_filled(ids):
        return _first_violation_filled(ids)
    in_vocabulary = (ids >= 0) & (ids < VOCAB_SIZE)
    end = len(ids) if in_vocabulary.all() else int(in_vocabulary.argmin())
    ids_T = ids[:end]
    if not (end and ids_T[-1] == EOS):
        # A sequence without EOS is finished where another bar could begin.
        ids_T = np.append(ids_T, OFFSET[Kind.BAR])
    kind, index = KIND_OF.take(ids_T), INDEX_OF.take(ids_T)
    bars = np.flatnonzero(is_kind(kind, Kind.BAR))
    body = int(bars[0]) if len(bars) else len(ids_T)

    bad = np.zeros(len(ids_T), dtype=bool)
    bad[0] = ids_T[0] not in (BOS, CONTINUE)
    _check_prefix(bad[1:body], kind[:body], index[:body])
    if body < len(ids_T):
        _check_bars(bad[body:], ids_T[body:], kind[body:], index[body:])
    if body >= len(ids):
        bad[-1] = True  # no bar at all
    if bad.any():
        return int(bad.argmax())
    return end if end < len(ids) else None


def _first_violation_filled(ids: np.ndarray) -> int | None:
    """The same, token by token: filled windows are few, and short beside a folder of shards."""
    state = FilledState()
    for position, token_id in enumerate(ids.tolist()):
        if not 0 <= token_id < VOCAB_SIZE or not state.allowed()[token_id]:
            return position
        state.advance(token_id)
    return None if state.is_complete else len(ids)


def _check_prefix(bad: np.ndarray, kind: np.ndarray, index: np.ndarray) -> None:
    """Each attribute once and in order; instruments ascending."""
    before, now = kind[:-1], kind[1:]
    both_instruments = is_kind(now, Kind.INSTRUMENT) & is_kind(before, Kind.INSTRUMENT)
    ascends = (now > before) | (both_instruments & (index[1:] > index[:-1]))
    bad |= ~ascends | (now > int(Kind.INSTRUMENT))


def _check_bars(bad: np.ndarray, ids: np.ndarray, kind: np.ndarray, index: np.ndarray) -> None:
    """Everything from the first bar token on."""
    bad[1:] |= ~_FOLLOWS[kind[:-1], kind[1:]]
    bad |= is_kind(kind, Kind.CONTROL) & (ids != EOS)

    at = {k: np.flatnonzero(is_kind(kind, k)) for k in FOLLOWS}
    segments, onsets, metres = at[Kind.INSTRUMENT], at[Kind.ONSET], at[Kind.METRE]
    # What the first bar, and the first note of a segment, must say.
    first_bar = np.zeros(1, dtype=np.int64)
    for starts, distance, due in (
        (first_bar, 1, Kind.METRE),
        (first_bar, 2, Kind.TEMPO),
        (segments, 3, Kind.DURATION),
        (segments, 4, Kind.VELOCITY),
    ):
        there = starts[starts < len(kind) - distance] + distance
        bad[there] |= ~is_kind(kind[there], due)

    # Order and change, each inside the unit whose statement it is.
    for k, units, must_ascend in (
        (Kind.METRE, first_bar, False),
        (Kind.TEMPO, first_bar, False),
        (Kind.INSTRUMENT, at[Kind.BAR], True),
        (Kind.ONSET, segments, True),
        (Kind.PITCH, onsets, True),
        (Kind.DURATION, segments, False),
        (Kind.VELOCITY, segments, False),
    ):
        unit = np.searchsorted(units, at[k])
        step = np.diff(index[at[k]])
        wrong = (step <= 0 if must_ascend else step == 0) & (np.diff(unit) == 0)
        bad[at[k][1:]] |= wrong

    if len(metres):
        metre = index[metres[np.searchsorted(metres, onsets) - 1]]
        bad[onsets] |= index[onsets] >= METRE_STEPS[metre]
