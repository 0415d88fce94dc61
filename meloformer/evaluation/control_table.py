"""The judge's findings as Markdown and as JSON: no share without its pieces and its interval."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from meloformer.evaluation.control_intervals import (
    FEWEST_APART,
    Interval,
    difference,
    interval,
    num_apart,
)
from meloformer.evaluation.control_rows import Row
from meloformer.evaluation.control_scores import MEANING, METRICS
from meloformer.plurals import counted

# Metrics side by side, as many as a terminal is wide.
_GROUPS = (METRICS[:5], METRICS[5:])


def percent(found: Interval) -> str:
    """A share with its interval and its pieces.

    >>> percent(Interval(mean=0.5, low=0.41, high=0.593, n=120))
    '50.0 [41.0, 59.3] n 120'
    """
    if not found.n:
        return "-"
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}] n {found.n}"


def signed(found: Interval, digits: int = 3) -> str:
    """A difference with its interval and its pieces.

    >>> signed(Interval(mean=-0.5, low=-0.75, high=0.25, n=9))
    '-0.500 [-0.750, +0.250] n 9'
    """
    if not found.n:
        return "-"
    if found.low == found.high:  # nothing varies, so resampling knows no interval
        return f"{found.mean:+.{digits}f} in every piece, n {found.n}"
    mean, low, high = (f"{value:+.{digits}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}] n {found.n}"


def intervals_of(row: Row, *, kept: bool = False, seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of every metric of a row."""
    scores = row.kept if kept else row.scores
    return {name: interval(scores[name], seed=seed) for name in METRICS}


def score_tables(rows: Sequence[Row], *, kept: bool = False, seed: int = 0) -> list[str]:
    """Markdown: a line per row, a column per metric, in percent."""
    found = [(row.name, intervals_of(row, kept=kept, seed=seed)) for row in rows]
    if kept:
        found = [(name, of) for name, of in found if any(one.n for one in of.values())]
    lines: list[str] = []
    for group in _GROUPS:
        columns = [name for name in group if any(of[name].n for _, of in found)]
        if columns:
            body = [[name, *(percent(of[column]) for column in columns)] for name, of in found]
            lines += [*markdown(["row", *columns], body), ""]
    return lines


def comparisons(rows: Sequence[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """Each way of writing from the own text beside another's text and beside none.

    Returns:
        Of each pair and metric: both intervals, whether they touch, the interval of the difference
        piece by piece, and in how many pieces the two are not equal.
    """
    by_name = {row.name: row for row in rows}
    found = []
    for row in rows:
        if row.source != "text":
            continue
        for other in (f"shuffled, {row.way}", "none, summaries"):
            if other not in by_name:
                continue
            for metric in METRICS:
                own, others = row.scores[metric], by_name[other].scores[metric]
                mine, theirs = interval(own, seed=seed), interval(others, seed=seed)
                if mine.n and theirs.n:
                    found.append(
                        {
                            "row": row.name,
                            "beside": other,
                            "metric": metric,
                            "own": asdict(mine),
                            "other": asdict(theirs),
                            "touch": mine.touches(theirs),
                            "difference": asdict(difference(own, others, seed=seed)),
                            "num_apart": num_apart(own, others),
                        }
                    )
    return found


def comparison_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown of `comparisons`, with a plain word on each."""
    body = [
        [
            one["row"],
            one["beside"],
            one["metric"],
            percent(Interval(**one["own"])),
            percent(Interval(**one["other"])),
            signed(_times(Interval(**one["difference"]), 100), 1),
            verdict(one),
        ]
        for one in found
    ]
    header = ["row", "beside", "metric", "own", "other", "difference, points", "intervals"]
    return markdown(header, body)


def verdict(one: dict[str, Any]) -> str:
    """Whether intervals touch, and if not, who is ahead, where pieces enough say so."""
    if one["touch"]:
        return "touch"
    if one["num_apart"] < FEWEST_APART:
        verb = "differs" if one["num_apart"] == 1 else "differ"
        return f"nothing shown, {counted(one['num_apart'], 'piece')} {verb}"
    return "apart, higher" if one["own"]["mean"] > one["other"]["mean"] else "apart, LOWER"


def legend() -> list[str]:
    """What the metrics mean."""
    return [f"- {name}: {meaning}" for name, meaning in MEANING.items()]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    table = [list(header), *map(list, body)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [_line(row, widths) for row in table]
    return [lines[0], _line(["-" * width for width in widths], widths), *lines[1:]]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"


def _times(found: Interval, factor: float) -> Interval:
    return Interval(
        mean=factor * found.mean, low=factor * found.low, high=factor * found.high, n=found.n
    )


def plain(value: Any) -> Any:
    """The same without what JSON has no word for: nan becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
