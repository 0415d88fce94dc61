"""Several reports of the judge beside each other: who is ahead in what, piece by piece.

What makes one piece harder than another falls out of a difference piece by piece, so that fewer
pieces tell two reports apart than their own intervals would need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from meloformer.errors import ConfigError
from meloformer.evaluation.control_intervals import (
    FEWEST_APART,
    Interval,
    difference,
    num_apart,
)
from meloformer.evaluation.control_pairs import Report
from meloformer.evaluation.control_rows import WAYS, WRITTEN_SOURCES, WrittenSource
from meloformer.evaluation.control_scores import METRICS

# Those that are to score high: of the others nobody asks anything, or not what is scored.
_ASKED = ("text", "true")

NATS = "nats per note against none"
KINDS = ("text", "own")
VARIETY = "variety"
Better = Literal["higher", "lower"]


@dataclass(frozen=True, eq=False)
class Measure:
    """What reports are held against each other in.

    Args:
        where: the row that is scored, or what is measured of it.
        name: of the metric, or of the summaries.
        values: (P,) of each report that has it, by name.
        digits: that a difference is shown with.
        better: None where neither is: what a row of others' texts is scored on, nobody asked for.
    """

    where: str
    name: str
    values: dict[str, np.ndarray]
    digits: int
    better: Better | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """A report less another, piece by piece.

    Args:
        measure: what they differ in.
        report: name of the one.
        other: name of that which is taken off.
        found: mean and interval over the pieces that count in both.
        num_apart: pieces in which the two are not equal.
    """

    measure: Measure
    report: str
    other: str
    found: Interval
    num_apart: int

    @property
    def word(self) -> str:
        """Who is ahead, if anybody."""
        if not self.found.n:
            return "no piece in common"
        if self.found.low <= 0 <= self.found.high:
            return "no difference shown"
        if self.num_apart < FEWEST_APART:
            plural = "piece differs" if self.num_apart == 1 else "pieces differ"
            return f"no difference shown: {self.num_apart} {plural}"
        found = "higher" if self.found.mean > 0 else "lower"
        if self.measure.better is None:
            return found
        return "ahead" if found == self.measure.better else "behind"


def measures_of(reports: Sequence[Report], rows: Sequence[str]) -> list[Measure]:
    """Metrics of these rows, in percent, then nats per note and variety: all that are there."""
    found = []
    for row in rows:
        better: Better | None = "higher" if row.startswith(_ASKED) else None
        for metric in METRICS:
            values = {r.name: 100 * r.scores[row][metric] for r in reports if row in r.scores}
            found.append(Measure(row, metric, _counted(values), digits=1, better=better))
    for kind in KINDS:
        values = {r.name: r.nats[kind] - r.nats["none"] for r in reports if kind in r.nats}
        found.append(Measure(NATS, kind, _counted(values), digits=3, better="lower"))
    for row in rows:
        values = {r.name: 100 * r.variety[row] for r in reports if row in r.variety}
        found.append(Measure(VARIETY, row, _counted(values), digits=1, better=None))
    return [measure for measure in found if measure.values]


def _counted(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of a piece or more."""
    return {name: of for name, of in values.items() if not np.isnan(of).all()}


def compared_rows(reports: Sequence[Report], sources: Sequence[WrittenSource]) -> list[str]:
    """Names of the rows that any report has of these sources, by way.

    Raises:
        ConfigError: there is no row of a source in any of them.
    """
    found = {row for report in reports for row in report.rows}
    # The pieces themselves are the same in all reports.
    there = [s for s in WRITTEN_SOURCES if any(f"{s}, {way}" in found for way in WAYS)]
    for source in sources:
        if source not in there:
            raise ConfigError(
                f"--row {source}: found in no report; allowed: those that one has, "
                f"{' '.join(there) or 'of which there is none'}"
            )
    rows = [f"{source}, {way}" for source in dict.fromkeys(sources) for way in WAYS]
    return [row for row in rows if row in found]


def differences(measure: Measure) -> dict[tuple[str, str], Difference]:
    """Each report less each that stands before it, by both names."""
    found = {}
    for (other, others), (name, values) in combinations(measure.values.items(), 2):
        found[name, other] = Difference(
            measure=measure,
            report=name,
            other=other,
            found=difference(values, others),
            num_apart=num_apart(values, others),
        )
    return found


def winner(measure: Measure, found: Mapping[tuple[str, str], Difference]) -> str | None:
    """The report that is ahead of every other that has the measure, if one is."""
    beaten = {name: 0 for name in measure.values}
    for pair in found.values():
        if pair.word in ("ahead", "behind"):
            beaten[pair.report if pair.word == "ahead" else pair.other] += 1
    ahead_of_all = [name for name, count in beaten.items() if 0 < count == len(beaten) - 1]
    return ahead_of_all[0] if ahead_of_all else None
