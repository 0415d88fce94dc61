"""What a corpus looks like, added up piece by piece: memory does not grow with it."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from meloformer.shards.manifest import SPLITS
from meloformer.shards.piece_table import QUANTISED

TOTALS = ("pieces", "bars", "notes", "tokens")


class Histogram:
    """How often each value came up, to a fixed resolution; grows with the largest value alone.

    Args:
        unit: resolution; quantiles are exact to it.
    """

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        self._counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count (N,) values from 0 up."""
        found = np.bincount(np.rint(values / self.unit).astype(np.int64))
        if len(found) > len(self._counts):
            self._counts = np.pad(self._counts, (0, len(found) - len(self._counts)))
        self._counts[: len(found)] += found

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self._counts.sum())

    @property
    def largest(self) -> float:
        """Largest value; 0 where there is none."""
        return max(len(self._counts) - 1, 0) * self.unit

    @property
    def mean(self) -> float:
        """Mean value; 0 where there is none."""
        return float(self._counts @ self._values()) / max(self.total, 1)

    def quantile(self, share: float) -> float:
        """Smallest value that at least this share of all values does not exceed.

        >>> histogram = Histogram()
        >>> histogram.add(np.array([1, 2, 2, 9]))
        >>> histogram.quantile(0.5), histogram.quantile(1.0)
        (2.0, 9.0)
        """
        reached = np.cumsum(self._counts)
        return float(np.searchsorted(reached, max(share * self.total, 1))) * self.unit

    def share_up_to(self, limit: float) -> float:
        """Share of values that do not exceed a limit."""
        return self.counts_between(np.array([0.0, limit + self.unit / 2]))[0] / max(self.total, 1)

    def weight_up_to(self, limit: float) -> float:
        """Sum of the values that do not exceed a limit, as a share of the sum of all."""
        values = self._values()
        whole = np.where(values <= limit, values, 0)
        return float(self._counts @ whole) / max(float(self._counts @ values), 1)

    def weight_within(self, limit: float) -> float:
        """Sum of all values, each cut off at a limit, as a share of the sum of all.

        >>> histogram = Histogram()
        >>> histogram.add(np.array([2, 6]))
        >>> histogram.weight_within(4)
        0.75
        """
        values = self._values()
        return float(self._counts @ np.minimum(values, limit)) / max(
            float(self._counts @ values), 1
        )

    def counts_between(self, edges: np.ndarray) -> np.ndarray:
        """(N - 1,) values from each of (N,) ascending edges up to, not with, the next."""
        reached = np.concatenate([[0], np.cumsum(self._counts)])
        first = np.clip(np.ceil(edges / self.unit - 1e-9).astype(np.int64), 0, len(self._counts))
        return np.diff(reached[first])

    def _values(self) -> np.ndarray:
        return np.arange(len(self._counts)) * self.unit


@dataclass(frozen=True, order=True)
class LongestPiece:
    """A piece that is the longest in something.

    Args:
        tokens: of it.
        key: of the piece.
        split: where it would stand.
        source: file that it came from.
    """

    tokens: int
    key: str = ""
    split: str = ""
    source: str = ""


@dataclass(kw_only=True)
class PieceStatistics:
    """Sums over pieces; see `add`.

    Args:
        splits: pieces, bars, notes and tokens of each split; pieces of none stand under "".
        several_tempos: pieces whose tempo changes.
        several_metres: pieces whose metre changes.
        instruments: pieces that hold an instrument, by its name.
        families: likewise by family of eight programs, 0..15; -1 is the drum kit.
        quantised: sums of the quantiser's counts.
        longest_bar: tokens of the longest bar of each piece, with the prefix of a window.
        longest: the longest `piece`, and the one with the longest `bar`, where there is one.
    """

    tokens: Histogram = field(default_factory=Histogram)
    bars: Histogram = field(default_factory=Histogram)
    notes: Histogram = field(default_factory=Histogram)
    seconds: Histogram = field(default_factory=Histogram)
    tokens_per_bar: Histogram = field(default_factory=lambda: Histogram(0.1))
    notes_per_bar: Histogram = field(default_factory=lambda: Histogram(0.1))
    tempo_bpm: Histogram = field(default_factory=lambda: Histogram(0.5))
    num_instruments: Histogram = field(default_factory=Histogram)
    off_grid: Histogram = field(default_factory=lambda: Histogram(0.001))
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    several_tempos: int = 0
    several_metres: int = 0
    instruments: Counter[str] = field(default_factory=Counter)
    families: Counter[int] = field(default_factory=Counter)
    metres: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)
    quantised: Counter[str] = field(default_factory=Counter)
    total_seconds: float = 0.0
    longest_bar: Histogram = field(default_factory=Histogram)
    longest: dict[str, LongestPiece] = field(default_factory=dict)

    @property
    def num_pieces(self) -> int:
        return self.tokens.total

    def total(self, what: str) -> int:
        """Pieces, bars, notes or tokens of all splits."""
        return sum(counts[what] for counts in self.splits.values())

    def add(self, table: pa.Table) -> None:
        """Take in a row group of piece_table."""
        tokens, bars, notes = (
            table[f"num_{what}"].to_numpy() for what in ("tokens", "bars", "notes")
        )
        seconds = table["duration_seconds"].to_numpy()
        self.tokens.add(tokens)
        self.bars.add(bars)
        self.notes.add(notes)
        self.seconds.add(seconds)
        self.total_seconds += float(seconds.sum())
        self.tokens_per_bar.add(tokens / bars)
        self.notes_per_bar.add(notes / bars)
        self._add_splits(table, tokens, bars, notes)
        lowest, highest = (
            table[f"tempo_bpm_{end}"].to_numpy().astype(np.float64) for end in ("lowest", "highest")
        )
        self.tempo_bpm.add(np.sqrt(lowest * highest))
        self.several_tempos += int(np.count_nonzero(lowest != highest))
        self._add_instruments(table["instruments"].to_pylist())
        metres = table["metres"].to_pylist()
        self.metres.update(chain.from_iterable(metres))
        self.several_metres += sum(len(of_piece) > 1 for of_piece in metres)
        self.keys.update(key for key in table["key"].to_pylist() if key is not None)
        self.recovered.update(name for name in table["recovered"].to_pylist() if name)
        self.off_grid.add(table["off_grid"].drop_null().to_numpy().astype(np.float64))
        self.longest_bar.add(table["longest_bar"].drop_null().to_numpy())
        self._find_longest("piece", table, table["num_tokens"])
        self._find_longest("bar", table, table["longest_bar"])
        for name in QUANTISED:
            self.quantised[name] += int(table[f"quantised_{name}"].drop_null().to_numpy().sum())

    def _add_splits(self, table: pa.Table, *columns: np.ndarray) -> None:
        split = np.array([name or "" for name in table["split"].to_pylist()])
        for name in ("", *SPLITS):
            of_split = split == name
            if of_split.any():
                sums = [int(column[of_split].sum()) for column in columns]
                counts = dict(zip(("tokens", "bars", "notes"), sums, strict=True))
                counts["pieces"] = int(np.count_nonzero(of_split))
                self.splits.setdefault(name, Counter()).update(counts)

    def _find_longest(self, what: str, table: pa.Table, tokens: pa.ChunkedArray) -> None:
        if tokens.null_count == len(tokens):
            return
        row = int(np.nanargmax(tokens.to_numpy().astype(np.float64)))
        named = {name: table[name][row].as_py() or "" for name in ("piece", "split", "source")}
        found = LongestPiece(tokens[row].as_py(), named["piece"], named["split"], named["source"])
        if what not in self.longest or found.tokens > self.longest[what].tokens:
            self.longest[what] = found

    def _add_instruments(self, instruments: list[list[str]]) -> None:
        self.num_instruments.add(np.array([len(of_piece) for of_piece in instruments]))
        self.instruments.update(chain.from_iterable(instruments))
        for of_piece in instruments:
            self.families.update({family_of(name) for name in of_piece})


def family_of(instrument: str) -> int:
    """Family of `#D` or `#P0`..`#P127`.

    >>> family_of("#D"), family_of("#P0"), family_of("#P127")
    (-1, 0, 15)
    """
    return -1 if instrument == "#D" else int(instrument.removeprefix("#P")) // 8
