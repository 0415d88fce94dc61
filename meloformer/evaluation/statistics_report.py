"""The report on statistics: a table for the terminal, statistics.json, pieces.jsonl, the page."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meloformer.errors import ConfigError
from meloformer.evaluation.control_intervals import LEVEL
from meloformer.evaluation.control_table import plain
from meloformer.evaluation.statistics_judge import (
    JudgedSet,
    StatisticsFindings,
    interval_of,
    is_apart,
    names_of,
)
from meloformer.evaluation.statistics_page import (
    chord_shares,
    key_shares,
    number,
    span,
    statistics_page,
)
from meloformer.evaluation.statistics_settings import StatisticsConfig
from meloformer.plurals import counted
from meloformer.shards.report_charts import tokens_text
from meloformer.tokens.vocabulary import CHORD_QUALITIES, NUM_KEYS, key_name

JSON_NAME, PIECES_NAME, PAGE_NAME = "statistics.json", "pieces.jsonl", "report.html"

# A column of a set, where nobody's terminal limits the table.
_COLUMN_CHARACTERS, _NAME_CHARACTERS = 34, 30


def check_new_folder(folder: Path) -> None:
    """Refuse an output that holds something, before anything is judged for it.

    Raises:
        ConfigError: it is a file, or a folder that is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        found = "found a folder that is not empty"
    elif folder.exists() and not folder.is_dir():
        found = "found a file"
    else:
        return
    raise ConfigError(f"--output {folder}: {found}; allowed: a new folder, or an empty one")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears when it is complete, and not at all where something goes wrong.

    Yields:
        Where its files are to be written.

    Raises:
        ConfigError: it cannot be made.
    """
    check_new_folder(folder)
    unfinished = folder.absolute().parent / f".{folder.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(folder)
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: cannot be written ({error.strerror}); allowed: a folder with room"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def save_statistics(
    folder: Path,
    findings: StatisticsFindings,
    config: StatisticsConfig,
    settings: Mapping[str, Any],
    *,
    title: str,
    seed: int,
) -> None:
    """Write the three files into a folder.

    Args:
        folder: of `new_folder`.
        findings: what was found.
        config: what the page shows.
        settings: what decided the figures.
        title: of the page.
        seed: draws the pieces that the page shows.
    """
    document = json.dumps(plain(statistics_json(findings, settings)), indent=2, ensure_ascii=False)
    (folder / JSON_NAME).write_text(document + "\n", encoding="utf-8")
    with (folder / PIECES_NAME).open("w", encoding="utf-8") as file:
        for line in piece_lines(findings):
            file.write(json.dumps(plain(line), ensure_ascii=False) + "\n")
    html = statistics_page(findings, config, title, seed)
    (folder / PAGE_NAME).write_text(html, encoding="utf-8")


def statistics_json(findings: StatisticsFindings, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure of the report; nan where there is nothing to say."""
    return {
        "settings": dict(settings),
        "notes": findings.notes,
        "reference": findings.reference,
        "sets": {one.name: _set_json(findings, one) for one in findings.sets},
        "bar_similarity_chance": None if findings.chance is None else asdict(findings.chance),
        "likelihood": [
            {
                "context_length": one.length,
                "windows": one.num_windows,
                "nats": asdict(one.nats),
                "nats_per_note_of_pieces": asdict(one.per_note),
            }
            for one in findings.likelihood
        ],
    }


def _set_json(findings: StatisticsFindings, one: JudgedSet) -> dict[str, Any]:
    found = {name: interval_of(one, name) for name in names_of(findings)}
    document: dict[str, Any] = {
        "files": one.pieces.num_files,
        "pieces": len(one.pieces.pieces),
        "unread": one.pieces.reasons,
        "statistics": {name: asdict(of) for name, of in found.items() if of is not None},
        "apart": [name for name in found if is_apart(findings, one, name)],
        "bar_similarity": one.pairs.curve(),
        "chords": dict(zip((*CHORD_QUALITIES, "none"), chord_shares(one).tolist(), strict=True)),
        "keys": dict(zip(map(key_name, range(NUM_KEYS)), key_shares(one).tolist(), strict=True)),
    }
    if one.copies is not None:
        document["longest_run"] = one.copies.longest_run
    return document


def piece_lines(findings: StatisticsFindings) -> Iterator[dict[str, Any]]:
    """One record a file: its statistics, or why it could not be read."""
    for one in findings.sets:
        for place, piece in enumerate(one.pieces.pieces):
            line: dict[str, Any] = {"set": one.name, "file": piece.name, **piece.values}
            line["key"] = None if piece.key is None else key_name(piece.key)
            if one.copies is not None:
                for likeness, shares in one.copies.shares.items():
                    line[f"copied_bars_{likeness}"] = float(shares[place])
                line["nearest"] = one.copies.nearest[place] or None
                line["overlap"] = float(one.copies.overlap[place])
            yield line
        for file in one.pieces.unread:
            yield {
                "set": one.name,
                "file": file.name,
                "unread": file.reason,
                "detail": file.detail,
            }


def print_statistics(findings: StatisticsFindings, console: Console) -> None:
    """The tables of a report for people."""
    # What is not a terminal has no width of its own.
    if not console.is_terminal:
        console.width = _NAME_CHARACTERS + _COLUMN_CHARACTERS * len(findings.sets)
    console.print(statistics_table(findings))
    if findings.likelihood:
        console.print(likelihood_table(findings))
    for one in findings.sets:
        if one.pieces.unread:
            reasons = ", ".join(f"{count} {name}" for name, count in one.pieces.reasons.items())
            console.print(
                f"{one.name}: {counted(len(one.pieces.unread), 'file')} not read: {reasons}",
                markup=False,
            )
    for note in findings.notes:
        console.print(note, markup=False)


def statistics_table(findings: StatisticsFindings) -> Table:
    """A line a statistic, a column a set; * where its interval does not meet the reference's."""
    # Quoted: a set may be called by any word, such as in or out.
    beside = "" if findings.reference is None else f"; * apart from '{findings.reference}'"
    found = Table(caption=escape(f"means over pieces ({LEVEL:.0%} interval){beside}"))
    found.add_column("", no_wrap=True)
    for one in findings.sets:
        found.add_column(
            f"{escape(one.name)}, {counted(len(one.pieces.pieces), 'piece')}", justify="right"
        )
    for name in names_of(findings):
        cells = []
        for one in findings.sets:
            of = interval_of(one, name)
            if of is None or not of.n:
                cells.append("-")
                continue
            mark = " *" if is_apart(findings, one, name) else ""
            cells.append(escape(f"{number(of.mean, name)} [{span(of, name)}]{mark}"))
        found.add_row(name, *cells)
    return found


def likelihood_table(findings: StatisticsFindings) -> Table:
    """A column a context length: nats per note, per token, and per token of each kind."""
    scored = findings.likelihood
    found = Table(title="nats of held-out pieces, by tokens that are read at once")
    found.add_column("", no_wrap=True)
    for one in scored:
        found.add_column(tokens_text(one.length), justify="right")
    rows = {
        "per note": [one.nats.per_note for one in scored],
        "per note, mean of pieces": [one.per_note.mean for one in scored],
        "per token": [one.nats.per_token for one in scored],
    }
    for kind in dict.fromkeys(kind for one in scored for kind in one.nats.per_kind):
        rows[kind.lower()] = [one.nats.per_kind.get(kind, math.nan) for one in scored]
    for name, values in rows.items():
        found.add_row(name, *("-" if math.isnan(of) else f"{of:.3f}" for of in values))
    return found
