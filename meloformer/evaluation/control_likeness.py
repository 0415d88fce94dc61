"""What the judge says of bars beside bars: how music comes back, and how much a text leaves open.

Neither asks what a text wishes for. How alike a row's bars are, by how far apart they are, is held
against the real pieces, cut to as many bars; what is written of a text is held against what is
written of the same text once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meloformer.evaluation.bar_similarity import (
    BarPairs,
    chance_error,
    similarity_error,
    variety,
)
from meloformer.evaluation.control_intervals import Interval, derangement, interval
from meloformer.evaluation.control_likelihood import bare_bars
from meloformer.evaluation.control_rows import Generated, Generator, JudgedPiece, Way, judge_row
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.hid import decode

# Ways in which texts are written twice, where they are written so at all.
VARIETY_WAYS: tuple[Way, ...] = ("summaries", "attributes")
# What stands for the real pieces, as in the rows of scores.
REAL = "piece"

# Told of the part that runs, and of its pieces done and in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Likeness:
    """Bars beside bars.

    Args:
        pairs: of each row and of the real pieces, pairs of bars by how far apart they are.
        variety: (P,) how different two pieces of one text are, by row, and a real piece beside
            another, as far as a perfect writer goes who is asked for nothing; nan of pieces that
            were written once. Empty where all were.
    """

    pairs: dict[str, BarPairs]
    variety: dict[str, np.ndarray]


def judge_likeness(
    pieces: Sequence[JudgedPiece],
    written: Mapping[str, Sequence[Generated]],
    generator: Generator,
    *,
    variety_n: int,
    max_bars: int,
    seed: int,
    on_progress: OnProgress = lambda part, done, total: None,
) -> Likeness:
    """Compare the bars of all rows, and write some texts once more to compare the two.

    Args:
        pieces: at least two.
        written: by the name of the row, a piece for each of the judged ones.
        generator: what wrote them.
        variety_n: a seeded draw of as many pieces, at most, whose texts are written once more with
            other noise and other draws, in each of VARIETY_WAYS that has been written; 0: none.
        max_bars: as in what has been written.
        seed: as in what has been written.
        on_progress: told after each batch.
    """
    real = [decode(bare_bars(piece.ids, max_bars)) if len(piece.ids) else None for piece in pieces]
    pairs = {REAL: BarPairs.of(real, max_bars - 1)}
    for name, made in written.items():
        pairs[name] = BarPairs.of((decode(one.ids) for one in made), max_bars - 1)
    ways = [way for way in VARIETY_WAYS if f"text, {way}" in written]
    if variety_n == 0 or not ways:
        return Likeness(pairs=pairs, variety={})
    random = np.random.default_rng(seed)
    places = sorted(random.permutation(len(pieces))[:variety_n].tolist())
    others = derangement(len(pieces), seed)
    found = {REAL: [_variety(real[place], real[others[place]]) for place in places]}
    for way in ways:
        row, again = judge_row(
            [pieces[place] for place in places],
            "text",
            way,
            generator,
            max_bars=max_bars,
            seed=seed + len(pieces),  # past those of all that has been written
            on_piece=_again(way, len(places), on_progress),
        )
        before = [written[row.name][place] for place in places]
        both = zip(before, again, strict=True)
        found[row.name] = [_variety(decode(one.ids), decode(other.ids)) for one, other in both]
    variety = {name: np.full(len(pieces), np.nan) for name in found}
    for name, values in found.items():
        variety[name][places] = values
    return Likeness(pairs=pairs, variety=variety)


def _again(way: Way, total: int, on_progress: OnProgress) -> Callable[[int], None]:
    return lambda done: on_progress(f"text, {way}, again", done, total)


def _variety(one: QuantisedPiece | None, other: QuantisedPiece | None) -> float:
    """Nan where a piece is not there."""
    return np.nan if one is None or other is None else variety(one, other)


def similarity_errors(likeness: Likeness, *, seed: int) -> dict[str, Interval]:
    """The error of each row beside the real pieces; that of these beside themselves is 0.

    Real pieces that are not there, or have one bar, count in no row.
    """
    is_there = likeness.pairs[REAL].has_pairs
    reference = likeness.pairs[REAL].take(is_there)
    return {
        name: similarity_error(of_row.take(is_there), reference, in_pairs=True, seed=seed)
        for name, of_row in likeness.pairs.items()
    }


def chance_of_pieces(likeness: Likeness, *, seed: int) -> Interval:
    """The error of a second draw of as many real pieces."""
    real = likeness.pairs[REAL]
    return chance_error(real.take(real.has_pairs), seed=seed)


def variety_intervals(likeness: Likeness, *, seed: int) -> dict[str, Interval]:
    """How different two pieces are, as a mean over pieces."""
    return {name: interval(values, seed=seed) for name, values in likeness.variety.items()}
