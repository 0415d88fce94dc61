"""What the kernel's mask function compares: the rules as times, bits and codes of single keys.

`masks.token_reads` tests pairs of labels: a dozen loads and some thirty operations for each pair,
about as much as the two products of a score. But a row is laid out piece by piece and bar by bar,
so most of a rule is a stretch of time in which a key is read: a prefix until its piece ends, a bar
token at least until its bar ends, a token of a near bar until the last near bar ends, a summary
from the bar after its own, an open summary by the prefix of its piece. What is left over:

- same instrument: piece and instrument in one code, equal or not;
- one bar distance beyond the near ones, and tokens of an open summary's own bar: the number of
  the bar, over all pieces of the row, with gaps between pieces that no distance spans;
- several distances: one bit per bar modulo 32. A key holds the bits of all bars that read it, a
  query its own, so nothing is ever shifted; `last` keeps out what would come round again, and
  distance 32 falls on the bit of distance 0, which every key with bits is read by.
"""

from dataclasses import dataclass

import numpy as np

from meloformer.model.masks import HeadGroup, KernelLabels, Layout

# Bars told apart by the bits of an int32.
_NUM_BITS = 32
# Two bounds that no time lies between, and two codes that nothing is equal to.
_NEVER_FIRST, _NEVER_LAST = 1, 0
_NO_QUERY, _NO_KEY = -1, -2


@dataclass(frozen=True)
class Distances:
    """Bar distances of a head group, by how they are tested.

    Args:
        last: `last` of a key is the end of the bar at this distance; -1: the key's own time.
        bits: distances tested by bits, up to `last`; empty where each up to `last` is read.
        codes: distances tested one by one.
    """

    last: int
    bits: tuple[int, ...]
    codes: tuple[int, ...]


def split_distances(bar_distances: tuple[int, ...]) -> Distances:
    """How to test some bar distances in few operations.

    >>> split_distances((0, 1, 2, 4))
    Distances(last=2, bits=(), codes=(4,))
    >>> split_distances((0, 1, 4, 32, 64))
    Distances(last=32, bits=(0, 1, 4, 32), codes=(64,))
    """
    distances = sorted(set(bar_distances))
    near = next((n for n, d in enumerate(distances) if n != d), len(distances)) - 1
    beyond = tuple(distances[near + 1 :])
    # Bits cost less than two codes; a key without distance 0 is not read by its whole bar.
    within = tuple(d for d in beyond if d <= _NUM_BITS)
    if near < 0 or len(within) < 2:
        return Distances(near, (), beyond)
    return Distances(within[-1], (*range(near + 1), *within), beyond[len(within) :])


class LabelledRow:
    """One row of a layout, and where its bars and pieces begin and end.

    Args:
        layout: labels of B rows as numpy arrays; pieces one after another, bars in order, padding
            last.
        row: which of them.
    """

    def __init__(self, layout: Layout, row: int) -> None:
        self.piece_T = layout.piece_BT[row]
        self.bar_T = layout.bar_BT[row]
        self.instrument_T = layout.instrument_BT[row]
        self.is_bar_token_T = (layout.index_BT[row] == 0) & (self.bar_T >= 0)
        self.piece_S = layout.piece_BS[row]
        self.bar_S = layout.bar_BS[row]
        self.open_S = None if layout.open_BS is None else layout.open_BS[row]
        self.time_T = np.arange(len(self.piece_T), dtype=np.int32)
        self.slot_S = np.arange(len(self.piece_S), dtype=np.int32)
        # Bars numbered over all pieces, so that one sorted look-up finds any; the prefix is bar -1.
        self.bars_per_piece = 2 + int(max(self.bar_T.max(initial=0), self.bar_S.max(initial=0)))

        changes = np.ones(len(self.piece_T), dtype=bool)
        changes[1:] = (np.diff(self.piece_T) != 0) | (np.diff(self.bar_T) != 0)
        self.run_T = np.cumsum(changes) - 1
        first_R = np.flatnonzero(changes)
        self.piece_R, self.bar_R = self.piece_T[first_R], self.bar_T[first_R]
        self.number_R = self._numbers(self.piece_R, self.bar_R)
        self.number_S = self._numbers(self.piece_S, self.bar_S)
        assert (np.diff(self.number_R) > 0).all(), "bars of a row stand in order, padding last"
        real = self.piece_S >= 0
        assert (np.diff(self.number_S[real]) > 0).all() and (np.diff(real.astype(int)) <= 0).all()
        # One more, so that a look-up past the end finds the end of the row.
        self.first_R = np.append(first_R, len(self.piece_T)).astype(np.int32)

    def summarize_labels(self) -> KernelLabels:
        """For SUMMARIZE: queries are slots; keys slots, then tokens."""
        first_S, last_S = self.slot_S, self._last_slot(self.piece_S, self.bars_per_piece)
        last_S = np.where(self.piece_S < 0, self.slot_S, last_S)
        # Tokens of a run share their bar's slot; a prefix is read by all slots of its piece.
        first_R = np.searchsorted(self.number_S, self.number_R, side="left")
        last_R = np.where(
            self.bar_R < 0,
            self._last_slot(self.piece_R, self.bars_per_piece),
            self._last_slot(self.piece_R, self.bar_R),
        )
        first_R = np.where(self.piece_R < 0, _NEVER_FIRST, first_R)
        last_R = np.where(self.piece_R < 0, _NEVER_LAST, last_R)
        return KernelLabels(
            first_BN=_joined(first_S, first_R[self.run_T]),
            last_BN=_joined(last_S, last_R[self.run_T]),
        )

    def update_labels(self, group: HeadGroup, order_T: np.ndarray | None) -> KernelLabels:
        """For UPDATE: queries are tokens; keys slots, then tokens.

        Args:
            group: the rule.
            order_T: time of the token stored at each place; None stores them in time.
        """
        is_padding_T = self.piece_T < 0
        piece_end_R = self._last_time(self.piece_R, self.bars_per_piece)
        distances = None if group.bar_distances is None else split_distances(group.bar_distances)
        if distances is None:
            last_T = piece_end_R[self.run_T]
        else:
            last_R = self._last_time(self.piece_R, self.bar_R + max(distances.last, 0))
            last_T = np.where(self.bar_R < 0, piece_end_R, last_R)[self.run_T]
            if distances.last < 0:
                is_alone_T = (self.bar_T >= 0) & ~self.is_bar_token_T
                last_T = np.where(is_alone_T, self.time_T, last_T)
        last_T = np.where(is_padding_T, self.time_T, last_T)

        # A summary is read from the first bar after its own until its piece ends.
        last_S = self._last_time(self.piece_S, self.bars_per_piece)
        after_S = np.searchsorted(self.number_R, self.number_S, side="right")
        first_S = np.where(self.piece_S < 0, _NEVER_FIRST, self.first_R[after_S])
        last_S = np.where(self.piece_S < 0, _NEVER_LAST, last_S)

        bit_T = bits_T = None
        codes = []
        if distances is not None and distances.bits:
            bit_T, bits_T = self._bits(distances.bits)
        if distances is not None and distances.codes:
            bars_T = self._bars_with_gaps(self.piece_T, self.bar_T, distances)
            query_T = np.where(is_padding_T, _NO_QUERY, bars_T)
            for distance in distances.codes:
                codes.append((query_T, np.where(is_padding_T, _NO_KEY, bars_T + distance)))
        if group.same_instrument and distances is not None:
            instruments = int(self.instrument_T.max(initial=0)) + 1
            code_T = self.piece_T * instruments + self.instrument_T
            has_none_T = self.bar_T < 0
            codes.append(
                (np.where(has_none_T, _NO_QUERY, code_T), np.where(has_none_T, _NO_KEY, code_T))
            )

        def stored(field_T: np.ndarray) -> np.ndarray:
            return field_T if order_T is None else field_T[order_T]

        # Of a summary, the times say all: every bit, no code.
        every_S, no_key_S = np.full_like(self.slot_S, -1), np.full_like(self.slot_S, _NO_KEY)
        return KernelLabels(
            first_BN=_joined(first_S, stored(self.time_T)),
            last_BN=_joined(last_S, stored(last_T)),
            time_BQ=None if order_T is None else order_T.astype(np.int32),
            bit_BQ=None if bit_T is None else stored(bit_T).astype(np.int32),
            bits_BN=None if bits_T is None else _joined(every_S, stored(bits_T)),
            codes=tuple(
                (stored(query_T).astype(np.int32), _joined(no_key_S, stored(key_T)))
                for query_T, key_T in codes
            ),
        )

    def opened_labels(
        self, labels: KernelLabels, group: HeadGroup, order_T: np.ndarray | None
    ) -> KernelLabels:
        """For UPDATE with open summaries: keys slots, open slots, then tokens.

        Args:
            labels: what `update_labels` says for the same group and order.
            group: the rule.
            order_T: time of the token stored at each place; None stores them in time.
        """
        assert self.open_S is not None
        is_absent_S, num_slots = self.open_S < 0, len(self.slot_S)

        def with_open(field_N: np.ndarray, of_open_S: np.ndarray) -> np.ndarray:
            return np.insert(field_N, num_slots, of_open_S)

        # From the first token of a piece to the last of its prefix; there may be none.
        prefix_S = self._numbers(self.open_S, np.asarray(-1))
        first_S = self.first_R[np.searchsorted(self.number_R, prefix_S, side="left")]
        last_S = self._last_time(self.open_S, -1)
        distances = None if group.bar_distances is None else split_distances(group.bar_distances)
        own_S = self._bars_with_gaps(self.open_S, self.bar_S, distances)
        own_S = np.where(is_absent_S, _NO_KEY, own_S)
        codes = list(labels.codes)
        if distances is None or not distances.codes:
            bars_T = self._bars_with_gaps(self.piece_T, self.bar_T, distances)
            query_T = np.where(self.piece_T < 0, _NO_QUERY, bars_T).astype(np.int32)
            if order_T is not None:
                query_T = query_T[order_T]
            codes.insert(0, (query_T, np.full_like(labels.first_BN, _NO_KEY)))
        # The first code numbers bars, as that of distances does where there are any.
        (query_T, key_N), *others = codes
        no_key_S, every_S = np.full_like(own_S, _NO_KEY), np.full_like(own_S, -1)
        return KernelLabels(
            first_BN=with_open(labels.first_BN, np.where(is_absent_S, _NEVER_FIRST, first_S)),
            last_BN=with_open(labels.last_BN, np.where(is_absent_S, _NEVER_LAST, last_S)),
            time_BQ=labels.time_BQ,
            bit_BQ=labels.bit_BQ,
            bits_BN=None if labels.bits_BN is None else with_open(labels.bits_BN, every_S),
            codes=(
                (query_T, with_open(key_N, own_S)),
                *((query_T, with_open(key_N, no_key_S)) for query_T, key_N in others),
            ),
        )

    def _numbers(self, piece: np.ndarray, bar: np.ndarray) -> np.ndarray:
        """Bars numbered over all pieces, ascending in time; padding after all of them."""
        numbers = piece.astype(np.int64) * self.bars_per_piece + np.minimum(
            bar + 1, self.bars_per_piece - 1
        )
        return np.where(piece < 0, np.iinfo(np.int64).max, numbers)

    def _last_time(self, piece: np.ndarray, bar: np.ndarray | int) -> np.ndarray:
        """Time of the last token of a piece up to some bar."""
        after = np.searchsorted(self.number_R, self._numbers(piece, np.asarray(bar)), side="right")
        return self.first_R[after] - 1

    def _last_slot(self, piece: np.ndarray, bar: np.ndarray | int) -> np.ndarray:
        """Last slot of a piece up to some bar."""
        return (
            np.searchsorted(self.number_S, self._numbers(piece, np.asarray(bar)), side="right") - 1
        )

    def _bits(self, bar_distances: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The bit of each token as a query, and the bits that read it as a key."""
        one_bit = (np.uint32(1) << np.arange(_NUM_BITS, dtype=np.uint32)).view(np.int32)
        bars = np.arange(_NUM_BITS)
        readers = np.zeros(_NUM_BITS, dtype=np.int32)
        for bar in {distance % _NUM_BITS for distance in bar_distances}:
            readers |= one_bit[(bars + bar) % _NUM_BITS]
        bar_T = self.bar_T % _NUM_BITS
        # Times alone decide over a prefix and over padding.
        return one_bit[bar_T], np.where(self.bar_T < 0, -1, readers[bar_T])

    def _bars_with_gaps(
        self, piece: np.ndarray, bar: np.ndarray, distances: Distances | None
    ) -> np.ndarray:
        """Bars numbered over all pieces, with more numbers between two than any coded distance."""
        farthest = max(distances.codes, default=0) if distances else 0
        width = self.bars_per_piece + farthest + 1
        assert (int(self.piece_T.max(initial=0)) + 1) * width <= np.iinfo(np.int32).max
        return piece * width + bar + 1


def _joined(of_slots: np.ndarray, of_tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([of_slots, of_tokens], dtype=np.int32, casting="same_kind")


def stack_labels(rows: list[KernelLabels]) -> KernelLabels:
    """Labels of single rows as those of a batch."""
    first = rows[0]

    def stacked(name: str) -> np.ndarray | None:
        return None if getattr(first, name) is None else np.stack([getattr(r, name) for r in rows])

    return KernelLabels(
        first_BN=stacked("first_BN"),
        last_BN=stacked("last_BN"),
        time_BQ=stacked("time_BQ"),
        bit_BQ=stacked("bit_BQ"),
        bits_BN=stacked("bits_BN"),
        codes=tuple(
            (np.stack([query for query, _ in pairs]), np.stack([key for _, key in pairs]))
            for pairs in zip(*(row.codes for row in rows), strict=True)
        ),
    )
