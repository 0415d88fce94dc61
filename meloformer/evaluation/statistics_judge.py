"""Sets of pieces beside each other: every statistic with its interval, curves, copies."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from meloformer.evaluation.bar_similarity import BarPairs, chance_error, similarity_error
from meloformer.evaluation.control_intervals import Interval, interval
from meloformer.evaluation.judged_pieces import PieceSet
from meloformer.evaluation.likelihood_by_length import LengthNats
from meloformer.evaluation.piece_copies import LIKENESSES, Copies, find_copies
from meloformer.evaluation.statistics_settings import StatisticsConfig
from meloformer.evaluation.statistics_table import STATISTICS
from meloformer.progress import Tell
from meloformer.shards.reader import ShardFolder

READABLE = "readable"
SIMILARITY_ERROR = "bar_similarity_error"
TUNES = "tunes"


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedSet:
    """A set of pieces and all that is said of it.

    Args:
        pieces: the set.
        intervals: of every statistic, by name; of shares that are copied too, where that is known.
        pairs: of its bars.
        error: what its bar similarity differs by from the reference's; None of the reference.
        copies: None where no training set was given.
    """

    pieces: PieceSet
    intervals: dict[str, Interval]
    pairs: BarPairs
    error: Interval | None
    copies: Copies | None

    @property
    def name(self) -> str:
        return self.pieces.name


@dataclass(frozen=True, eq=False, kw_only=True)
class StatisticsFindings:
    """Everything of a report.

    Args:
        sets: side by side, in the order in which they were named.
        reference: name of the set that the others are held against; None where there is one alone.
        chance: error of a second draw of as many pieces as the reference has.
        likelihood: of held-out pieces by context length; none where no model is judged.
        notes: lines for people.
    """

    sets: list[JudgedSet]
    reference: str | None
    chance: Interval | None
    likelihood: list[LengthNats] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, name: str) -> JudgedSet:
        return next(one for one in self.sets if one.name == name)


def judge_sets(
    sets: Sequence[PieceSet],
    config: StatisticsConfig,
    *,
    seed: int,
    tell: Tell,
    reference: str | None = None,
    trained_on: ShardFolder | None = None,
) -> StatisticsFindings:
    """Measure sets of pieces and hold them against one of them.

    Args:
        sets: of at least one piece each, their names different.
        config: how.
        seed: of the intervals.
        tell: told how far it is.
        reference: name of one of them; the first, if there are several and none is named.
        trained_on: shards in whose training split copies are looked for; None does not look.

    Raises:
        ShardError: a shard is damaged.
    """
    if reference is None and len(sets) > 1:
        reference = sets[0].name
    copies: Sequence[Copies | None] = [None] * len(sets)
    if trained_on is not None and config.copying == "on":
        copies = find_copies(
            sets, trained_on, lambda done, total: tell(done, total, "training pieces")
        )
    pairs = {
        one.name: BarPairs.of((piece.music for piece in one.pieces), config.distances)
        for one in sets
    }
    base = None if reference is None else pairs[reference]
    judged = [
        JudgedSet(
            pieces=one,
            intervals=_intervals(one, found, seed),
            pairs=pairs[one.name],
            error=None
            if base is None or one.name == reference
            else similarity_error(pairs[one.name], base, seed=seed),
            copies=found,
        )
        for one, found in zip(sets, copies, strict=True)
    ]
    return StatisticsFindings(
        sets=judged,
        reference=reference,
        chance=None if base is None else chance_error(base, seed=seed),
    )


def _intervals(one: PieceSet, copies: Copies | None, seed: int) -> dict[str, Interval]:
    is_read = np.repeat([1.0, 0.0], [len(one.pieces), len(one.unread)])
    found = {READABLE: interval(is_read, seed=seed)}
    for statistic in STATISTICS:
        found[statistic.name] = interval(
            one.column(statistic.name), seed=seed, is_share=statistic.is_share
        )
    if copies is not None:
        for likeness in LIKENESSES:
            found[copied(likeness)] = interval(copies.shares[likeness], seed=seed)
        found[TUNES] = interval(copies.tunes, seed=seed)
    return found


def copied(likeness: str) -> str:
    """Name of the share of copied bars.

    >>> copied("verbatim")
    'copied_bars_verbatim'
    """
    return f"copied_bars_{likeness}"


# What a name means that is no statistic of a piece alone; all but the error are shares.
MEANINGS = {
    READABLE: "files that can be read and hold notes",
    SIMILARITY_ERROR: "what the similarity of bars 1, 2, ... apart differs by from the reference's",
    copied("verbatim"): "bars of 4 notes and more that stand in the training split",
    copied("transposed"): "the same, whatever the key",
    TUNES: "pieces that are versions of a training piece, whatever the key and the tempo",
} | {statistic.name: statistic.meaning for statistic in STATISTICS}

SHARES = frozenset(MEANINGS) - {one.name for one in STATISTICS if not one.is_share}


def names_of(findings: StatisticsFindings) -> list[str]:
    """Names of all that any set has an interval of, in the order of tables."""
    found = [READABLE, *(statistic.name for statistic in STATISTICS)]
    if findings.reference is not None:
        found.append(SIMILARITY_ERROR)
    if any(one.copies is not None for one in findings.sets):
        found += [*map(copied, LIKENESSES), TUNES]
    return found


def interval_of(one: JudgedSet, name: str) -> Interval | None:
    """Of a set, by name; None where it has none."""
    return one.error if name == SIMILARITY_ERROR else one.intervals.get(name)


def is_apart(findings: StatisticsFindings, one: JudgedSet, name: str) -> bool:
    """Whether a set's interval and the reference's do not meet; of the error, whether it is shown.

    The error is apart where its interval begins above what a second draw of the reference has.
    """
    found = interval_of(one, name)
    if findings.reference in (None, one.name) or found is None or not found.n:
        return False
    if name == SIMILARITY_ERROR:
        return findings.chance is not None and found.low > findings.chance.high
    other = interval_of(findings.of(str(findings.reference)), name)
    return other is not None and not found.touches(other)
