"""The judge's report: control.md to read, control.json with every figure, pieces.jsonl by piece."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.errors import ConfigError
from meloformer.evaluation.control import Findings, nats_intervals, piece_lines
from meloformer.evaluation.control_intervals import LEVEL, Interval
from meloformer.evaluation.control_likeness import (
    chance_of_pieces,
    similarity_errors,
    variety_intervals,
)
from meloformer.evaluation.control_table import (
    comparison_table,
    comparisons,
    intervals_of,
    legend,
    markdown,
    percent,
    plain,
    score_tables,
    signed,
)

MARKDOWN_NAME, JSON_NAME, PIECES_NAME = "control.md", "control.json", "pieces.jsonl"

# What a difference of nats per note has to be for summaries to do what they are for.
_PROMISES = {"own": "lower", "text": "lower", "another": "higher", "another_text": "higher"}

# Bars apart that the table shows; the files have all.
_DISTANCES = (1, 2, 4, 8, 16, 32)


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot take the report, before anything is judged for it.

    Raises:
        ConfigError: a file stands there, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: cannot be made ({error.strerror}); allowed: a folder"
        ) from error


def report_lines(findings: Findings, settings: Mapping[str, Any], seed: int) -> list[str]:
    """The report as Markdown."""
    lines = ["# Control", ""]
    lines += [f"- {name}: {value}" for name, value in settings.items()]
    lines += [f"- {note}" for note in findings.notes]
    lines += [
        f"- n = {len(findings.pieces)}; shares in percent with {100 * LEVEL:.0f} % intervals, "
        "bootstrap over pieces; each column counts the pieces whose text speaks of it",
        "",
        "## What was asked for and is heard",
        "",
        *score_tables(findings.rows, seed=seed),
        *legend(),
        "",
    ]
    beside = comparisons(findings.rows, seed=seed)
    if beside:
        lines += ["## A text beside another's and none", "", *comparison_table(beside), ""]
    kept = score_tables(findings.rows, kept=True, seed=seed)
    if kept:
        lines += ["## What the text was taken to ask for and is heard", "", *kept]
    if findings.sections:
        rows = [
            [name, *(percent(one) for one in intervals_of(row, seed=seed).values())]
            for name, row in findings.sections.items()
        ]
        header = ["part", *intervals_of(next(iter(findings.sections.values())), seed=seed)]
        lines += ["## Two texts, one after the other", "", *markdown(header, rows), ""]
    lines += _similarity_lines(findings, seed) + _variety_lines(findings, seed)
    lines += _likelihood_lines(findings, seed) + _retrieval_lines(findings)
    if findings.protocol:
        lines += ["## text2midi's protocol", "", *_protocol_table(findings), ""]
        lines += ["CR is by SIATECCompress; the paper's is by COSIATEC, which is a little higher."]
    return lines


def _similarity_lines(findings: Findings, seed: int) -> list[str]:
    pairs = findings.likeness.pairs
    curves = {name: of_row.curve() for name, of_row in pairs.items()}
    (max_distance,) = {len(curve) for curve in curves.values()}
    if max_distance == 0:
        return []
    shown = [distance for distance in _DISTANCES if distance <= max_distance]
    errors = similarity_errors(findings.likeness, seed=seed)
    body = [
        [name, percent(errors[name]), *(_share(curve[distance - 1]) for distance in shown)]
        for name, curve in curves.items()
    ]
    header = ["row", "similarity error", *(f"{distance} apart" for distance in shown)]
    return [
        "## How bars come back",
        "",
        *markdown(header, body),
        "",
        "- 1 apart, ...: of the notes of two bars so far apart, those that both hold, in percent",
        f"- similarity error: what that differs by from the real pieces', as a mean over 1 to "
        f"{max_distance} apart; a second draw of as many real pieces: "
        f"{percent(chance_of_pieces(findings.likeness, seed=seed))}",
        "",
    ]


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _variety_lines(findings: Findings, seed: int) -> list[str]:
    found = variety_intervals(findings.likeness, seed=seed)
    if not found:
        return []
    body = [[name, percent(one)] for name, one in found.items()]
    return [
        "## How different two pieces of one text are",
        "",
        *markdown(["row", "variety"], body),
        "",
        "- variety: of the notes of bar b in one piece and in the other, those that only one holds,"
        " in percent; the other has the same text and other noise and draws, in row piece two real"
        " pieces",
        "",
    ]


def _likelihood_lines(findings: Findings, seed: int) -> list[str]:
    if not findings.nats:
        return []
    nats = nats_intervals(findings, seed)
    body = []
    for kind, found in nats.items():
        change = findings.differences.get(kind)
        body.append(
            [
                kind,
                f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] n {found.n}",
                "" if change is None else signed(change),
                "" if change is None else promise(kind, change),
            ]
        )
    header = ["summaries", "nats per note", "against none", "as promised"]
    return ["## Likelihood of the real notes", "", *markdown(header, body), ""]


def promise(kind: str, change: Interval) -> str:
    """Whether summaries move the likelihood as they have to.

    >>> promise("own", Interval(mean=-0.2, low=-0.3, high=-0.1, n=40))
    'yes: lower'
    >>> promise("another", Interval(mean=0.1, low=-0.1, high=0.3, n=40))
    'not shown: the interval holds 0 (promised: higher)'
    """
    promised = _PROMISES[kind]
    if change.low <= 0 <= change.high:
        return f"not shown: the interval holds 0 (promised: {promised})"
    found = "lower" if change.mean < 0 else "higher"
    return f"yes: {found}" if found == promised else f"NO: {found} (promised: {promised})"


def _retrieval_lines(findings: Findings) -> list[str]:
    found = findings.retrieval
    if found is None:
        return []
    rank = found.mean_rank
    body = [
        ["first", percent(found.first), f"{100 / found.group_size:.1f}"],
        [
            "among the first five",
            percent(found.first_five),
            f"{min(500 / found.group_size, 100):.1f}",
        ],
        [
            "mean rank",
            f"{rank.mean:.1f} [{rank.low:.1f}, {rank.high:.1f}] n {rank.n}",
            f"{(found.group_size + 1) / 2:.1f}",
        ],
    ]
    title = f"## The right piece from its text among {found.group_size}"
    return [title, "", *markdown(["", "found", "by chance"], body), ""]


def _protocol_table(findings: Findings) -> list[str]:
    body = []
    for name, numbers in findings.protocol.items():
        ratio = numbers["CR"]
        cells = [percent(found) for number, found in numbers.items() if number != "CR"]
        said = f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] n {ratio.n}"
        body.append([name, *cells, said])
    return markdown(["row", *next(iter(findings.protocol.values()))], body)


def report_json(findings: Findings, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Every figure of the report."""

    def scores(row: Any, *, kept: bool = False) -> dict[str, Any]:
        found = intervals_of(row, kept=kept, seed=seed)
        return {name: asdict(one) for name, one in found.items() if one.n}

    retrieval = findings.retrieval
    errors = similarity_errors(findings.likeness, seed=seed)
    curves = {name: pairs.curve() for name, pairs in findings.likeness.pairs.items()}
    return plain(
        {
            "settings": dict(settings),
            "n": len(findings.pieces),
            "notes": findings.notes,
            "rows": {
                row.name: {"scores": scores(row), "kept": scores(row, kept=True)}
                for row in findings.rows
            },
            "bar_similarity": {
                name: {"error": asdict(errors[name]), "by_distance": curve}
                for name, curve in curves.items()
            },
            "bar_similarity_chance": asdict(chance_of_pieces(findings.likeness, seed=seed)),
            "variety": {
                name: asdict(found)
                for name, found in variety_intervals(findings.likeness, seed=seed).items()
            },
            "comparisons": comparisons(findings.rows, seed=seed),
            "sections": {name: scores(row) for name, row in findings.sections.items()},
            "nats_per_note": {k: asdict(v) for k, v in nats_intervals(findings, seed).items()},
            "nats_against_none": {k: asdict(v) for k, v in findings.differences.items()},
            "retrieval": None if retrieval is None else asdict(retrieval),
            "protocol": {
                name: {number: asdict(found) for number, found in numbers.items()}
                for name, numbers in findings.protocol.items()
            },
        }
    )


def save_report(folder: Path, findings: Findings, settings: Mapping[str, Any], seed: int) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        ConfigError: they cannot be written.
    """
    document = report_json(findings, settings, seed)
    texts = {
        PIECES_NAME: "".join(
            json.dumps(plain(line), ensure_ascii=False) + "\n" for line in piece_lines(findings)
        ),
        JSON_NAME: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        MARKDOWN_NAME: "\n".join(report_lines(findings, settings, seed)).rstrip() + "\n",
    }
    for name, text in texts.items():
        unfinished = folder / f".{name}.unfinished"
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(folder / name)
        except OSError as error:
            raise ConfigError(
                f"--output {folder}: {name} cannot be written ({error.strerror}); allowed: a "
                "folder with room"
            ) from error
