"""How alike bars are: those of one piece by how far apart they are, those of two pieces in turn.

The similarity of two bars is the share of all their notes that both hold: common notes over notes
of either. A note is its instrument, its onset from the bar line, its pitch and its duration; it
belongs to the bar in which it starts, with all of its duration. Loudness, tempo and metre do not
count. Two bars without a note have no similarity and that pair is left out: rests neither repeat
nor vary. A bar without a note and one with notes have 0.

The similarity error is how far the mean similarity of bars t apart lies from that of other music,
as a mean over t.

Source: Yu et al. 2022, Museformer, objective evaluation; there a note is onset, pitch and duration,
here another instrument makes it another note.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from meloformer.evaluation.control_intervals import LEVEL, NUM_RESAMPLES, Interval
from meloformer.midi.grid import DURATION_STEPS, MAX_BAR_STEPS, NUM_INSTRUMENTS
from meloformer.midi.quantised import QuantisedPiece

# Values of instrument, onset, pitch and duration.
_SIZES = (NUM_INSTRUMENTS, MAX_BAR_STEPS, 128, int(DURATION_STEPS[-1]) + 1)
# Above the bars of any piece, with room for a distance: a note and its bar are one number.
_BARS = 2**20


@dataclass(frozen=True, eq=False)
class _BarNotes:
    """Notes of a piece, to be looked up.

    Args:
        keys: (N,) int64, ascending: what the note is, and then its bar.
        per_bar: (num_bars,) notes of each bar.
    """

    keys: np.ndarray
    per_bar: np.ndarray

    @classmethod
    def of(cls, music: QuantisedPiece) -> "_BarNotes":
        note = (music.instrument, music.onset_steps, music.pitch, music.duration_steps)
        keys = np.unique(np.ravel_multi_index(note, _SIZES) * _BARS + music.bar)
        return cls(keys, np.bincount(keys % _BARS, minlength=music.num_bars))


def _similarities(one: _BarNotes, other: _BarNotes, distance: int) -> np.ndarray:
    """(B,) similarity of bar b of one to bar b + distance of the other, as far as both go."""
    num_bars = max(min(len(one.per_bar), len(other.per_bar) - distance), 0)
    is_common = np.isin(one.keys + distance, other.keys, assume_unique=True)
    common = np.bincount(one.keys[is_common] % _BARS, minlength=num_bars)[:num_bars]
    either = one.per_bar[:num_bars] + other.per_bar[distance : distance + num_bars] - common
    return _means(common, either)


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Nan where nothing was counted."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def bar_similarities(one: QuantisedPiece, other: QuantisedPiece) -> np.ndarray:
    """(B,) similarity of bar b of one piece to bar b of another, as far as both go.

    Nan where neither bar holds a note.
    """
    return _similarities(_BarNotes.of(one), _BarNotes.of(other), 0)


def variety(one: QuantisedPiece, other: QuantisedPiece) -> float:
    """How different two pieces are, bar by bar: 0 of equal ones, 1 where no bar shares a note.

    1 less the mean of `bar_similarities`; nan where there is none.
    """
    similarities = bar_similarities(one, other)
    told = similarities[~np.isnan(similarities)]
    return 1 - float(told.mean()) if len(told) else np.nan


def similarity_by_distance(
    music: QuantisedPiece, max_distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of all pairs of bars that are 1 to max_distance apart.

    Returns:
        (T,) float64 sums and (T,) int64 counts of pairs, of t bars apart at t - 1.
    """
    notes = _BarNotes.of(music)
    sums, counts = np.zeros(max_distance), np.zeros(max_distance, np.int64)
    for distance in range(1, min(max_distance, music.num_bars - 1) + 1):
        similarities = _similarities(notes, notes, distance)
        sums[distance - 1] = np.nansum(similarities)
        counts[distance - 1] = np.count_nonzero(~np.isnan(similarities))
    return sums, counts


@dataclass(frozen=True, eq=False, kw_only=True)
class BarPairs:
    """Pairs of bars of some pieces, by how far apart they are: t bars at t - 1.

    Args:
        sums: (P, T) float64 similarities of each piece's pairs, added up.
        counts: (P, T) int64, how many pairs these are.
    """

    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, pieces: Iterable[QuantisedPiece | None], max_distance: int) -> "BarPairs":
        """Pairs of each piece; one that is not there has none.

        Args:
            pieces: to be read once, one after the other.
            max_distance: T, from 0.
        """
        nothing = np.zeros(max_distance), np.zeros(max_distance, np.int64)
        found = [
            nothing if music is None else similarity_by_distance(music, max_distance)
            for music in pieces
        ]
        shape = (len(found), max_distance)
        return cls(
            sums=np.array([sums for sums, _ in found], np.float64).reshape(shape),
            counts=np.array([counts for _, counts in found], np.int64).reshape(shape),
        )

    def take(self, pieces: np.ndarray) -> "BarPairs":
        """Those of some of the pieces, by index or by a mask."""
        return BarPairs(sums=self.sums[pieces], counts=self.counts[pieces])

    @property
    def has_pairs(self) -> np.ndarray:
        """(P,) bool, whether a piece has a pair at all."""
        return np.asarray((self.counts > 0).any(axis=1))

    def curve(self) -> np.ndarray:
        """(T,) mean similarity over the pairs of all pieces; nan where there is none."""
        return _means(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def curves(self) -> np.ndarray:
        """(P, T) the same of each piece alone."""
        return _means(self.sums, self.counts)

    def _drawn_curves(self, times_RP: np.ndarray) -> np.ndarray:
        """(R, T) curves of draws that take each piece so many times."""
        return _means(times_RP @ self.sums, times_RP @ self.counts.astype(np.float64))


def _errors(curves: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(...) mean over t of what curves (..., T) differ by, where both have a pair."""
    gaps = np.abs(curves - others)
    return _means(np.nansum(gaps, axis=-1), np.count_nonzero(~np.isnan(gaps), axis=-1))


def _draws(num_pieces: int, num_resamples: int, random: np.random.Generator) -> np.ndarray:
    """(R, P) float64: how many times each of as many draws with replacement takes a piece."""
    shares = np.full(num_pieces, 1 / num_pieces)
    return random.multinomial(num_pieces, shares, size=num_resamples).astype(np.float64)


def similarity_error(
    pieces: BarPairs,
    reference: BarPairs,
    *,
    in_pairs: bool = False,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """How far the curve of some pieces lies from that of others, and the bootstrap over pieces.

    Args:
        pieces: what is judged.
        reference: what it is held against, of the same T; distances of which one of the two has
            no pair are left out.
        in_pairs: piece k belongs to piece k of the reference: draws take both or neither.
        seed: of the resampling.
        num_resamples: draws with replacement.

    Returns:
        The error, more and less what the difference of the two curves moves by from draw to draw,
        as a mean over t, in LEVEL of them: by the triangle inequality the true error is no farther,
        and where the lower end is 0 there may be none. Ends of the draws' own errors would not do:
        chance makes curves differ and never agree.
    """
    error = float(_errors(pieces.curve(), reference.curve()))
    n = int(pieces.has_pairs.sum())
    if np.isnan(error):
        return Interval(mean=np.nan, low=np.nan, high=np.nan, n=0)
    random = np.random.default_rng(seed)
    own_RP = _draws(len(pieces.sums), num_resamples, random)
    others_RP = own_RP
    if not in_pairs:
        others_RP = _draws(len(reference.sums), num_resamples, random)
    drawn_RT = pieces._drawn_curves(own_RP) - reference._drawn_curves(others_RP)
    moves_R = _errors(drawn_RT, pieces.curve() - reference.curve())
    reach = float(np.nanquantile(moves_R, LEVEL))
    return Interval(mean=error, low=max(error - reach, 0.0), high=error + reach, n=n)


def chance_error(
    pieces: BarPairs, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """The error of a second draw of as many pieces: what is left where nothing is wrong.

    Args:
        pieces: as the ones that a judged error is held against.
        seed: of the resampling.
        num_resamples: pairs of draws with replacement, the one held against the other.

    Returns:
        The mean of such errors, and between which ends LEVEL of them lie.
    """
    if not pieces.has_pairs.any():
        return Interval(mean=np.nan, low=np.nan, high=np.nan, n=0)
    random = np.random.default_rng(seed)
    curves, others = (
        pieces._drawn_curves(_draws(len(pieces.sums), num_resamples, random)) for _ in range(2)
    )
    errors_R = _errors(curves, others)
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(errors_R, [tail, 1 - tail])
    return Interval(
        mean=float(np.nanmean(errors_R)),
        low=float(low),
        high=float(high),
        n=int(pieces.has_pairs.sum()),
    )
