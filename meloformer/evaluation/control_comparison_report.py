"""The comparison of several reports as Markdown: a table of each way, who is ahead, who wins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meloformer.errors import ConfigError
from meloformer.evaluation.control_comparison import (
    KINDS,
    NATS,
    VARIETY,
    Difference,
    Measure,
    compared_rows,
    differences,
    measures_of,
    winner,
)
from meloformer.evaluation.control_intervals import FEWEST_APART, LEVEL, Interval
from meloformer.evaluation.control_likeness import REAL
from meloformer.evaluation.control_pairs import NOTHING, Report
from meloformer.evaluation.control_rows import WrittenSource
from meloformer.evaluation.control_scores import METRICS
from meloformer.evaluation.control_table import markdown, percent, signed

# Differences of each report to the others that stand before it, by what they differ in.
Found = Mapping[Measure, Mapping[tuple[str, str], Difference]]


def comparison_lines(
    reports: Sequence[Report], sources: Sequence[WrittenSource], notes: Sequence[str]
) -> list[str]:
    """The comparison as Markdown.

    Args:
        reports: of the same pieces.
        sources: whose rows are compared.
        notes: of `check_same_pieces`.

    Raises:
        ConfigError: see `compared_rows`.
    """
    rows = compared_rows(reports, sources)
    found = {measure: differences(measure) for measure in measures_of(reports, rows)}
    lines = ["# Control, compared", "", *(f"- {note}" for note in notes)]
    lines += [
        f"- differences are taken piece by piece, with {100 * LEVEL:.0f} % intervals, bootstrap "
        "over pieces",
        f"- ahead, behind: the interval leaves 0 out and {FEWEST_APART} pieces or more differ; of "
        f"{1 / (1 - LEVEL):.0f} differences that are none, one looks so by chance",
        "- fewer nats are better; higher and lower are neither where nobody asked for what is "
        "scored (shuffled, none), nor in variety",
        "",
        *_settings_table(reports),
    ]
    for row in rows:
        lines += [f"## {row}", "", *_row_table(reports, row), ""]
        lines += _differences_table(found, row, "points")
    lines += _nats_table(reports)
    lines += _differences_table(found, NATS, "nats per note")
    lines += _similarity_table(reports, rows) + _variety_table(reports, rows)
    lines += _differences_table(found, VARIETY, "points")
    return [*lines, wins_line(reports, found)]


def _settings_table(reports: Sequence[Report]) -> list[str]:
    settings = [_flat(report.figures["settings"]) for report in reports]
    names = dict.fromkeys(name for of in settings for name in of)
    body = [[name, *(of.get(name, "-") for of in settings)] for name in names]
    body = [row for row in body if len(set(row[1:])) > 1]
    if not body:
        return ["Settings: the same", ""]
    header = ["setting", *(report.name for report in reports)]
    return ["## Settings that differ", "", *markdown(header, body), ""]


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Settings as words, by dotted name.

    >>> _flat({"seed": 0, "flow": {"steps": 4, "solver": "heun"}})
    {'seed': '0', 'flow.steps': '4', 'flow.solver': 'heun'}
    """
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = str(value).replace("|", "\\|")
    return found


def _row_table(reports: Sequence[Report], row: str) -> list[str]:
    having = [report for report in reports if row in report.rows]
    columns = [metric for metric in METRICS if any(metric in one.rows[row] for one in having)]
    body = [[one.name, *_percents(one.rows[row], columns)] for one in having]
    lines = markdown(["report", *columns], body)
    without = [report.name for report in reports if row not in report.rows]
    return [*lines, "", f"without this row: {', '.join(without)}"] if without else lines


def _differences_table(found: Found, where: str, unit: str) -> list[str]:
    """Each report less the first that has the measure."""
    body = [
        [one.report, one.other, one.measure.name, signed(one.found, one.measure.digits), one.word]
        for measure, pairs in found.items()
        if measure.where == where
        for one in pairs.values()
        if one.other == next(iter(measure.values))
    ]
    if not body:
        return []
    return [*markdown(["report", "less", "in", f"difference, {unit}", "is"], body), ""]


def _nats_table(reports: Sequence[Report]) -> list[str]:
    having = [report for report in reports if report.nats]
    if not having:
        return []
    kinds = [kind for kind in KINDS if any(kind in one.nats for one in having)]
    header = ["report", "none"]
    for kind in kinds:
        header += [kind, f"{kind} against none"]
    body = []
    for one in having:
        body.append([one.name, plain_number(one.nats_intervals["none"])])
        for kind in kinds:
            body[-1].append(plain_number(one.nats_intervals.get(kind, NOTHING)))
            body[-1].append(signed(one.nats_against_none.get(kind, NOTHING)))
    return ["## Nats per note", "", *markdown(header, body), ""]


def plain_number(found: Interval) -> str:
    """A mean that is no share, with its interval and its pieces.

    >>> plain_number(Interval(mean=3.25, low=3, high=3.5, n=40))
    '3.250 [3.000, 3.500] n 40'
    """
    if not found.n:
        return "-"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] n {found.n}"


def _similarity_table(reports: Sequence[Report], rows: Sequence[str]) -> list[str]:
    having = [report for report in reports if report.chance_error.n]
    columns = [row for row in rows if any(row in one.similarity_errors for one in having)]
    if not columns:
        return []
    body = [
        [one.name, *_percents(one.similarity_errors, columns), percent(one.chance_error)]
        for one in having
    ]
    header = ["report", *columns, "by chance"]
    note = "of each report for itself: the less, the more do bars come back as in the real pieces"
    return ["## Bar similarity error", "", *markdown(header, body), "", f"- {note}", ""]


def _variety_table(reports: Sequence[Report], rows: Sequence[str]) -> list[str]:
    having = [report for report in reports if report.variety]
    columns = [row for row in rows if any(row in one.variety for one in having)]
    if not columns:
        return []
    body = [[one.name, *_percents(one.variety_intervals, [*columns, REAL])] for one in having]
    header = ["report", *columns, "two real pieces"]
    return ["## Variety of two pieces of one text", "", *markdown(header, body), ""]


def _percents(found: Mapping[str, Interval], columns: Sequence[str]) -> list[str]:
    return [percent(found.get(column, NOTHING)) for column in columns]


def wins_line(reports: Sequence[Report], found: Found) -> str:
    """Which report is ahead of every other in what."""
    won: dict[str, dict[str, list[str]]] = {report.name: {} for report in reports}
    for measure, pairs in found.items():
        if (name := winner(measure, pairs)) is not None:
            won[name].setdefault(measure.where, []).append(measure.name)
    said = [
        f"{name}: "
        + ("; ".join(f"{', '.join(of)} ({where})" for where, of in wins.items()) or "nothing")
        for name, wins in won.items()
    ]
    return f"Wins, ahead of every other report that has the row: {'. '.join(said)}."


def save_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(
            f"--output {path}: cannot be written ({error.strerror}); allowed: a file in a folder "
            "with room"
        ) from error
