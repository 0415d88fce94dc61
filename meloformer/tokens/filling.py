"""Filled windows: the bars to be written stand after those around them, so that they read both.

Bars 2 and 3 of a window of five are the hole; those after it come first, then those before it:

    0 1 2 3 4   ->   FILL prefix  4  FILL  0 1  FILL  2 3  FILL

Thus the hole follows the bars before it as ever, and a model that reads backwards only has read
what comes after. Bars count through in this order, so masks, labels, rotary and caches know nothing
of it. Metre and tempo hold through in this order too: a bar states what the one in front of it does
not. The last FILL ends the hole; EOS stands in its place where the window ends its piece.

Instruments that are to be written stand last in every bar and are named behind the first FILL:

    FILL #P33 prefix  bar #D .. #P0 .. #P40 .. #P33 ..  bar ..

Both at once is a hole whose bars hold those instruments last. The bars after a hole are never
none: what only goes on needs no form but the ordinary one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from meloformer.errors import TokenError
from meloformer.tokens.attributes import prefix_length
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import (
    BOS,
    CONTINUE,
    EOS,
    FILL,
    INDEX_OF,
    KIND_OF,
    OFFSET,
    Kind,
    is_kind,
    length_bin,
)
from meloformer.tokens.windows import bar_starts, restated

State = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Hole:
    """What stands last in a filled window.

    Args:
        first: first bar of the hole, in bar order.
        last: one past its last bar; equal to `first` where no bars stand last.
        instruments: stand last in every bar, ascending; 0 drums, 1 + program otherwise.
    """

    first: int = 0
    last: int = 0
    instruments: tuple[int, ...] = ()

    @property
    def has_bars(self) -> bool:
        return self.last > self.first


def is_filled(ids: np.ndarray) -> bool:
    """Whether a sequence is a filled window."""
    return len(ids) > 0 and int(ids[0]) == FILL


def fill(ids: np.ndarray, hole: Hole) -> np.ndarray:
    """Put what is to be written last.

    The prefix says metre and tempo of the hole's first bar and the hole's bars as the length; what
    it leaves out stays out. Where no bars stand last it stays as it was.

    Args:
        ids: (T,) a checked piece or window in bar order.
        hole: its bars, at least one of the window's after them, or instruments, or both.

    Raises:
        TokenError: no such bars, nothing to stand last, or a window that is filled already.

    >>> from meloformer.tokens.vocabulary import token_name
    >>> bar, metre, tempo = OFFSET[Kind.BAR], OFFSET[Kind.METRE], OFFSET[Kind.TEMPO]
    >>> ids = np.array([BOS, bar, metre, tempo, bar + 7, bar + 14, EOS])
    >>> " ".join(map(token_name, fill(ids, Hole(first=1, last=2))))
    'FILL BOS BAR:Dmaj 1/1 TEMPO:21.21 FILL BAR:Cmaj FILL BAR:C#maj EOS'
    """
    starts = bar_starts(ids)
    num_bars = len(starts) - 1
    is_inside = 0 <= hole.first < hole.last < num_bars
    if is_filled(ids) or not (is_inside if hole.has_bars else hole.instruments):
        raise TokenError(
            f"{hole} in a window of {num_bars} bars{', filled already' * is_filled(ids)}; allowed: "
            "a window in bar order, and bars with at least one behind them or instruments"
        )
    head = [FILL, *(OFFSET[Kind.INSTRUMENT] + i for i in sorted(set(hole.instruments)))]
    prefix = ids[: starts[0]]
    body, end = ids[starts[0] : starts[-1]], ids[starts[-1] :]
    if hole.instruments:
        body = _by_instrument(body, hole.instruments)
    if hole.has_bars:
        states = states_of_bars(ids, starts)
        prefix = _said(prefix, states[hole.first], hole.last - hole.first)
        order = ((hole.last, num_bars), (0, hole.first), (hole.first, hole.last))
        body = _rearranged(body, starts - starts[0], states, order, between=[FILL])
        end = np.array([EOS if len(end) else FILL])
    return np.concatenate([head, prefix, body, end]).astype(ids.dtype)


def unfill(ids: np.ndarray) -> np.ndarray:
    """The window in bar order: the inverse of `fill`.

    What a prefix says of the length cannot be said again where the window ends before its piece:
    there it is left out.

    Args:
        ids: (T,) a checked filled window.
    """
    prefix, parts, hole = _taken_apart(ids)
    body = np.concatenate(parts)
    flat = np.concatenate([prefix, body])
    starts = bar_starts(flat)
    num_bars = len(starts) - 1
    end = ids[-1:] if ids[-1] == EOS else ids[:0]
    if hole.has_bars:
        num_behind = num_bars - hole.last
        states = states_of_bars(flat, starts)
        order = (
            (num_behind, num_behind + hole.first),
            (num_behind + hole.first, num_bars),
            (0, num_behind),
        )
        body = _rearranged(body, starts - starts[0], states, order, between=[])
        # What stood first in the window stands right behind the bars after the hole.
        prefix = _said(prefix, states[num_behind], num_bars if len(end) else None)
    if hole.instruments:
        body = _by_instrument(body, ())
    return np.concatenate([prefix, body, end]).astype(ids.dtype)


def hole_of(ids: np.ndarray) -> Hole:
    """What stands last in a checked filled window."""
    return _taken_apart(ids)[2]


def states_of_bars(ids: np.ndarray, starts: np.ndarray) -> list[State]:
    """Metre and tempo index that hold in each bar; see `windows.state_of_bar`.

    Args:
        ids: (T,) a checked sequence.
        starts: its `bar_starts`.
    """
    kind = KIND_OF.take(ids)
    columns = []
    for stated in (Kind.METRE, Kind.TEMPO):
        places = np.flatnonzero(is_kind(kind, stated))
        places = places[places >= starts[0]]
        last = np.searchsorted(places, starts[1:]) - 1
        columns.append(INDEX_OF[ids[places[last]]].tolist())
    return list(zip(*columns, strict=True))


def _taken_apart(ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], Hole]:
    """Prefix in the ordinary form, tokens of the bars between the FILLs, and the hole."""
    end = len(ids) - int(ids[-1] in (EOS, FILL))
    begin = int(np.isin(ids[: prefix_length(ids)], (BOS, CONTINUE)).argmax())
    instruments = tuple(INDEX_OF[ids[1:begin]].tolist())
    body = prefix_length(ids)
    marks = body + np.flatnonzero(ids[body:end] == FILL)
    edges = [body - 1, *marks.tolist(), end]
    parts = [ids[a + 1 : b] for a, b in pairwise(edges)]
    first = last = 0
    if len(parts) == 3:
        first = _num_bars(parts[1])
        last = first + _num_bars(parts[2])
    return ids[begin:body], parts, Hole(first=first, last=last, instruments=instruments)


def _num_bars(tokens: np.ndarray) -> int:
    return int(np.count_nonzero(is_kind(KIND_OF.take(tokens), Kind.BAR)))


def _rearranged(
    body: np.ndarray,
    starts: np.ndarray,
    states: list[State],
    order: tuple[tuple[int, int], ...],
    between: list[int],
) -> np.ndarray:
    """Runs of bars in another order, metre and tempo stated where they now change.

    Args:
        body: (T,) tokens of all bars.
        starts: their offsets in it, then its end.
        states: metre and tempo of each bar.
        order: first and last (exclusive) bar of each run.
        between: tokens that part the runs.
    """
    parts: list[np.ndarray] = []
    in_force = None
    for number, (first, last) in enumerate(order):
        if number:
            parts.append(np.array(between, dtype=body.dtype))
        if last > first:
            parts.append(restated(body[starts[first] : starts[last]], states[first], in_force))
            in_force = states[last - 1]
    return np.concatenate(parts)


def _by_instrument(body: np.ndarray, last: Collection[int]) -> np.ndarray:
    """Instruments of every bar ascending, those of `last` behind the others."""
    labels = token_labels(body)
    is_last = np.isin(labels.instrument - 1, list(last))
    # A stable sort: what an instrument plays in a bar keeps its order.
    return body[np.lexsort((labels.instrument, is_last, labels.bar))]


def _said(prefix: np.ndarray, state: State, num_bars: int | None) -> np.ndarray:
    """A prefix that says another metre, tempo and length of what it says; None says no length."""
    said = {Kind.METRE: state[0], Kind.TEMPO: state[1]}
    kind = KIND_OF.take(prefix)
    if num_bars is None:
        prefix, kind = prefix[~is_kind(kind, Kind.LENGTH)], kind[~is_kind(kind, Kind.LENGTH)]
    else:
        said[Kind.LENGTH] = int(length_bin(num_bars))
    prefix = prefix.copy()
    for attribute, index in said.items():
        prefix[is_kind(kind, attribute)] = OFFSET[attribute] + index
    return prefix
