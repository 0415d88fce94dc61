"""Windows: whole bars of a piece with a prefix of their own, so that they read like a piece."""

import numpy as np

from meloformer.errors import TokenError
from meloformer.tokens.vocabulary import (
    CONTINUE,
    EOS,
    INDEX_OF,
    KIND_OF,
    NUM_CHORDS,
    OFFSET,
    Kind,
    is_kind,
    length_bin,
)

_FIRST_BAR = OFFSET[Kind.BAR]


def bar_starts(ids: np.ndarray) -> np.ndarray:
    """Token offsets of the bars.

    Returns:
        (num_bars + 1,) int32; the last entry is the end of the last bar, EOS left out.
    """
    end = len(ids) - int(len(ids) > 0 and ids[-1] == EOS)
    # By their block of ids, which takes less than looking up the kind of every token.
    is_bar = (ids >= _FIRST_BAR) & (ids < _FIRST_BAR + NUM_CHORDS)
    return np.append(np.flatnonzero(is_bar), end).astype(np.int32)


def state_of_bar(ids: np.ndarray, starts: np.ndarray, bar: int) -> tuple[int, int]:
    """Metre and tempo index that hold in a bar.

    Args:
        ids: (T,) a checked sequence.
        starts: its `bar_starts`.
        bar: 0..num_bars - 1.
    """
    # Only the two tokens behind a bar token can state them: no need to read the notes.
    bars = starts[: bar + 1]
    behind = np.concatenate([bars + 1, bars + 2])
    behind = behind[behind < starts[bar + 1]]
    kind = KIND_OF.take(ids[behind])
    metre = ids[behind[is_kind(kind, Kind.METRE)].max()]
    tempo = ids[behind[is_kind(kind, Kind.TEMPO)].max()]
    return int(INDEX_OF[metre]), int(INDEX_OF[tempo])


def cut_window(
    ids: np.ndarray, first: int, last: int, starts: np.ndarray | None = None
) -> np.ndarray:
    """Bars first..last - 1 of a whole piece as a sequence that decodes alone.

    The prefix says the metre and tempo of the window's first bar and the bars that remain to the
    end of the piece; what the piece's prefix leaves out stays out. EOS stands only in a window
    that ends the piece.

    Args:
        ids: (T,) a whole piece, BOS to EOS.
        first: first bar, 0..num_bars - 1.
        last: one past the last bar, first + 1..num_bars.
        starts: its `bar_starts`, where they are known already.

    Raises:
        TokenError: these bars are not there, or `ids` is itself a window.
    """
    if starts is None:
        starts = bar_starts(ids)
    num_bars = len(starts) - 1
    if not 0 <= first < last <= num_bars:
        raise TokenError(
            f"window of bars {first}..{last}: the piece has {num_bars}; allowed: "
            f"0 <= first < last <= {num_bars}"
        )
    _check_whole(ids)
    end = len(ids) if last == num_bars else int(starts[last])
    if first == 0:
        return ids[:end].copy()

    return _window_from(ids[:end], first, num_bars - first, starts)


def cut_tail(ids: np.ndarray, first: int, num_remaining: int) -> np.ndarray:
    """The last bars of a piece that is still being written, as the window that begins there.

    Args:
        ids: (T,) from BOS on, without EOS; the last bar may be unfinished, but not within its
            statements of metre and tempo.
        first: first bar of the window, from 1.
        num_remaining: bars from there to the end that the piece will have.

    >>> from meloformer.tokens.vocabulary import BOS
    >>> bar, metre, tempo = (OFFSET[kind] for kind in (Kind.BAR, Kind.METRE, Kind.TEMPO))
    >>> written = np.array([BOS, bar, metre, tempo, bar, bar])
    >>> cut_tail(written, 1, 9).tolist() == [CONTINUE, bar, metre, tempo, bar]
    True
    """
    return _window_from(ids, first, num_remaining, bar_starts(ids))


def _window_from(ids: np.ndarray, first: int, num_remaining: int, starts: np.ndarray) -> np.ndarray:
    """All from a bar on, behind the prefix of a window that says how many bars remain."""
    state = state_of_bar(ids, starts, first)
    prefix = ids[: starts[0]].copy()
    prefix[0] = CONTINUE
    said = {
        Kind.METRE: state[0],
        Kind.TEMPO: state[1],
        Kind.LENGTH: int(length_bin(num_remaining)),
    }
    kind = KIND_OF.take(prefix)
    for attribute, index in said.items():
        prefix[is_kind(kind, attribute)] = OFFSET[attribute] + index
    return np.concatenate([prefix, restated(ids[starts[first] :], state)])


def cut_bar(ids: np.ndarray, bar: int) -> np.ndarray:
    """One bar of a piece or of a window, with CONTINUE for its prefix; never with EOS."""
    starts = bar_starts(ids)
    if not 0 <= bar < len(starts) - 1:
        raise TokenError(f"bar {bar}: allowed 0..{len(starts) - 2}, the bars of this sequence")
    body = restated(ids[starts[bar] : starts[bar + 1]], state_of_bar(ids, starts, bar))
    return np.concatenate([np.array([CONTINUE], dtype=ids.dtype), body])


def window_length(
    prefix_length: int, bar_starts: np.ndarray, first: int | np.ndarray, last: int | np.ndarray
) -> int | np.ndarray:
    """Most tokens that `cut_window` can return, without reading any; exact for a whole piece.

    Args:
        prefix_length: tokens of the piece's prefix.
        bar_starts: of the piece.
        first: first bar, or (N,) of them.
        last: one past the last bar, or (N,) of them.

    >>> starts = np.array([10, 30, 40])
    >>> window_length(10, starts, 0, 2), window_length(10, starts, 1, 2)
    (41, 23)
    """
    restated = 2 * (np.asarray(first) > 0)
    has_eos = np.asarray(last) == len(bar_starts) - 1
    length = prefix_length + bar_starts[last] - bar_starts[first] + restated + has_eos
    return int(length) if np.ndim(length) == 0 else length


def summary_windows(
    ids: np.ndarray,
    starts: np.ndarray,
    *,
    max_bars: int = 160,
    max_tokens: int,
    overlap: int = 16,
) -> list[tuple[int, int]]:
    """Cut a piece into windows that a summary stream can hold, each as long as it can be.

    A window begins `overlap` bars before the end of the one before, or half of that one's bars
    where it is shorter than two overlaps, or later still where only so its end comes later too.
    A bar that is too long for a window of its own stands in none: those that no window names
    are the ones left out.

    Args:
        ids: (T,) a whole piece, BOS to EOS.
        starts: its `bar_starts`.
        max_bars: most bars of a window, from 1.
        max_tokens: most tokens of a window, by `window_length`.
        overlap: bars that two windows in a row share, from 0.

    Returns:
        (first, last) bars of each window, `last` not in it; both grow from window to window.

    Raises:
        TokenError: `ids` is itself a window.

    >>> from meloformer.tokens.vocabulary import BOS
    >>> ids = np.array([BOS, *[_FIRST_BAR] * 10, EOS])
    >>> summary_windows(ids, bar_starts(ids), max_bars=6, max_tokens=100, overlap=2)
    [(0, 6), (4, 10)]
    """
    _check_whole(ids)
    num_bars = len(starts) - 1
    windows: list[tuple[int, int]] = []
    first = end = 0
    while end < num_bars:
        last = _furthest(starts, first, max_tokens, max_bars)
        if last > end:
            windows.append((first, last))
            end = last
            first = last - min(overlap, (last - first) // 2)
        elif first < end:
            first += 1  # the bars shared leave no room for a new one: share fewer
        else:
            first = end = end + 1  # a bar that no window can hold
    return windows


def _check_whole(ids: np.ndarray) -> None:
    if ids[0] == CONTINUE or ids[-1] != EOS:
        raise TokenError(
            "a window was to be cut out of a window: the bars that remain are unknown; "
            "allowed: a whole piece, BOS to EOS; cut the piece itself"
        )


def _furthest(starts: np.ndarray, first: int, max_tokens: int, max_bars: int) -> int:
    """End of the longest window from a bar on; `first` itself where not one bar fits."""
    num_bars = len(starts) - 1
    lasts = np.arange(first + 1, min(first + max_bars, num_bars) + 1)
    lengths = window_length(int(starts[0]), starts, np.full_like(lasts, first), lasts)
    return first + int(np.searchsorted(lengths, max_tokens, side="right"))


def restated(
    bars: np.ndarray, state: tuple[int, int], in_force: tuple[int, int] | None = None
) -> np.ndarray:
    """Let the first of some bars state its metre and tempo, where they are not in force already.

    Args:
        bars: (T,) tokens of one bar or more, the first one's bar token first.
        state: metre and tempo index of the first bar.
        in_force: those of the bar that will stand before it; None states both.
    """
    states = np.isin(KIND_OF[bars[1:3]], (Kind.METRE, Kind.TEMPO))
    num_stated = int(np.logical_and.accumulate(states).sum())
    header = [bars[0]]
    for number, kind in enumerate((Kind.METRE, Kind.TEMPO)):
        if in_force is None or in_force[number] != state[number]:
            header.append(OFFSET[kind] + state[number])
    return np.concatenate([np.array(header, dtype=bars.dtype), bars[1 + num_stated :]])
