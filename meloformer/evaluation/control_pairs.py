"""Reports of the judge read again, so that what was judged on the same pieces can be paired."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.errors import ConfigError
from meloformer.evaluation.control_intervals import Interval
from meloformer.evaluation.control_report import JSON_NAME, PIECES_NAME
from meloformer.evaluation.control_scores import METRICS
from meloformer.plurals import counted

NOTHING = Interval(mean=np.nan, low=np.nan, high=np.nan, n=0)
_ALLOWED = "allowed: a folder that launch/evaluate.py --control has written"
# Means that are computed twice differ by no more.
_EQUAL = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportedPiece:
    """A line of pieces.jsonl, less its scores.

    Args:
        name: split, key and bars, in words.
        text: that it was judged by.
        wanted: what the text asks for, null where it does not say.
    """

    name: str
    text: str
    wanted: dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """A report that was read.

    Args:
        name: what tables call it.
        folder: where it lies.
        figures: control.json.
        pieces: in the order of their names and texts.
        rows: the interval of each metric, by row; a metric of no piece is not there.
        scores: (P,) of each metric, by row, in the order of the pieces.
        nats: (P,) nats per note, by kind of summaries; empty where nobody measured them.
        nats_intervals: the same as intervals.
        nats_against_none: their differences from those without summaries.
        variety: (P,) how different two pieces of one text are, by row; nan of those written once.
        variety_intervals: the same as intervals.
        similarity_errors: how far bars of a row come back otherwise than those of the real pieces,
            by row. Like varieties empty in reports of before it was measured.
        chance_error: that of a second draw of real pieces.
    """

    name: str
    folder: Path
    figures: dict[str, Any]
    pieces: list[ReportedPiece]
    rows: dict[str, dict[str, Interval]]
    scores: dict[str, dict[str, np.ndarray]]
    nats: dict[str, np.ndarray]
    nats_intervals: dict[str, Interval]
    nats_against_none: dict[str, Interval]
    variety: dict[str, np.ndarray]
    variety_intervals: dict[str, Interval]
    similarity_errors: dict[str, Interval]
    chance_error: Interval


def read_report(folder: Path, name: str) -> Report:
    """Read control.json and pieces.jsonl.

    Args:
        folder: of the report.
        name: what tables shall call it.

    Raises:
        ConfigError: one is missing or damaged, or the two are not of one judgement.
    """
    whole, by_piece = (_text(folder, file) for file in (JSON_NAME, PIECES_NAME))
    try:
        figures = json.loads(whole)
        # A text may hold other signs that `splitlines` takes for the end of a line.
        lines = [json.loads(line) for line in by_piece.split("\n") if line]
        report = _report(folder, name, figures, lines)
        found = _what_does_not_follow(report)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: found a damaged report ({type(error).__name__}: {error}); {_ALLOWED}; "
            "judge again"
        ) from error
    if found:
        raise ConfigError(
            f"{folder}: {PIECES_NAME} holds {found}; allowed: both files of one judgement; judge "
            "again"
        )
    return report


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder}: {name} cannot be read ({error}); {_ALLOWED}") from error


def _report(
    folder: Path, name: str, figures: dict[str, Any], lines: list[dict[str, Any]]
) -> Report:
    lines = sorted(lines, key=lambda line: (_called(line["name"]), line["text"]))
    nats = {
        kind: _column(line["nats_per_note"][kind] for line in lines)
        for kind in figures["nats_per_note"]
    }
    if nats and "none" not in nats:
        raise KeyError("nats_per_note of none")
    return Report(
        name=name,
        folder=folder,
        figures=figures,
        pieces=[
            ReportedPiece(
                name=_called(line["name"]), text=line["text"], wanted=dict(line["wanted"])
            )
            for line in lines
        ],
        rows={row: _intervals(found["scores"]) for row, found in figures["rows"].items()},
        scores={
            row: {
                metric: _column(line["scores"][row].get(metric) for line in lines)
                for metric in METRICS
            }
            for row in figures["rows"]
        },
        nats=nats,
        nats_intervals=_intervals(figures["nats_per_note"]),
        nats_against_none=_intervals(figures["nats_against_none"]),
        variety={
            row: _column(line["variety"][row] for line in lines)
            for row in figures.get("variety", {})
        },
        variety_intervals=_intervals(figures.get("variety", {})),
        similarity_errors=_intervals(
            {row: found["error"] for row, found in figures.get("bar_similarity", {}).items()}
        ),
        chance_error=_interval(figures.get("bar_similarity_chance")),
    )


def _called(name: Sequence[Any]) -> str:
    """A piece in words.

    >>> _called(["test", "a1f0", 0, 16])
    'a1f0 of test, bars 0 to 16'
    """
    split, key, first_bar, last_bar = name
    return f"{key} of {split or 'no split'}, bars {first_bar} to {last_bar}"


def _column(values: Iterator[float | None]) -> np.ndarray:
    return np.array(list(values), np.float64)  # null becomes nan


def _interval(found: Mapping[str, Any] | None) -> Interval:
    return Interval(**found) if found and found["n"] else NOTHING


def _intervals(found: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: _interval(one) for name, one in found.items()}


def _what_does_not_follow(report: Report) -> str | None:
    """Figures of control.json that the pieces beside it do not make."""
    said_pieces = report.figures["n"]
    if len(report.pieces) != said_pieces:
        return f"{len(report.pieces)} pieces, where {JSON_NAME} counts {said_pieces}"
    for row, scores in report.scores.items():
        for metric, values in scores.items():
            said, counted = report.rows[row].get(metric, NOTHING), values[~np.isnan(values)]
            is_said = len(counted) == said.n
            if is_said and said.n:
                is_said = abs(counted.mean() - said.mean) <= _EQUAL
            if not is_said:
                return f"another {metric} of {row} than {JSON_NAME}"
    return None


def check_same_pieces(reports: Sequence[Report], *, allow_other_texts: bool = False) -> list[str]:
    """Refuse reports whose pieces cannot be paired.

    Args:
        reports: the first is what the others are held against.
        allow_other_texts: the same pieces under other texts will do.

    Returns:
        Lines that say what is paired.

    Raises:
        ConfigError: other pieces, other texts, or one piece asked for two things.
    """
    first = reports[0]
    notes = []
    for report in reports[1:]:
        _check_names(first, report)
        pairs = list(zip(first.pieces, report.pieces, strict=True))
        apart = [(a, b) for a, b in pairs if a.text != b.text]
        others = f"{len(apart)} of {len(pairs)} pieces have another text"
        if apart and not allow_other_texts:
            a, b = apart[0]
            raise ConfigError(
                f"{report.folder}: {others} than in {first.folder}, first {a.name}: {b.text!r} "
                f"and not {a.text!r}; allowed: the same texts; judge both with the same "
                "--captions, --language and --seed, or give --allow_other_texts"
            )
        if apart:
            _check_once(report)
            notes.append(
                f"OTHER TEXTS: {others} in {report.name} than in {first.name}; a difference "
                "counts the pieces in which both texts speak of the metric"
            )
        _check_wishes(first, report)
    texts = "" if notes else ", with the same texts"
    return [f"{counted(len(first.pieces), 'piece')}, the same in every report{texts}", *notes]


def _check_names(first: Report, report: Report) -> None:
    mine, theirs = (Counter(piece.name for piece in one.pieces) for one in (report, first))
    more, missing = mine - theirs, theirs - mine
    if more or missing:
        raise ConfigError(
            f"{report.folder}: found {more.total()} pieces that {first.folder} does not have, and "
            f"{missing.total()} of its pieces missing, first {min(more or missing)}; allowed: the "
            "same pieces; judge both with the same --data, --captions, --language, --n and --seed"
        )


def _check_once(report: Report) -> None:
    """Under other texts a piece is known by its name alone."""
    name, count = Counter(piece.name for piece in report.pieces).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{report.folder}: found {name} {count} times; allowed with --allow_other_texts: each "
            "piece once, for names alone say which texts belong together"
        )


def _check_wishes(first: Report, report: Report) -> None:
    """Refuse texts that ask one piece for two things, as captions measured anew may."""
    for a, b in zip(first.pieces, report.pieces, strict=True):
        for field, wish in a.wanted.items():
            other = b.wanted.get(field)
            both_say = wish is not None and other is not None
            if wish != other and (both_say or a.text == b.text):
                mine, theirs = ("nothing" if one is None else one for one in (other, wish))
                raise ConfigError(
                    f"{report.folder}: {b.name} is asked for {field} {mine}, and {theirs} in "
                    f"{first.folder}; allowed: the same; judge both with the same --captions"
                )
