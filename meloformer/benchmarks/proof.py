"""What is claimed, how a figure decides on it, and the tables of what was found."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal

Verdict = Literal["PASS", "MISS", "NOT RUN"]

_HOLDS = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}
# Where commands leave what they write, from the root of the repository.
SCRATCH = "build/proof"
_SIGNIFICANT_DIGITS = 6
# An address keeps its slashes; a path from the root keeps its last name only.
_PATH = re.compile(r"(?<![\w./:])/(?:[^/\s'\"]+/)+")


@dataclass(frozen=True)
class Goal:
    """What a figure has to be.

    >>> str(Goal(">=", 300_000)), Goal(">=", 300_000).is_met(299_999)
    ('>= 300,000', False)
    """

    comparison: Literal["<", "<=", "=", ">=", ">"]
    number: float

    def is_met(self, measured: float) -> bool:
        return bool(_HOLDS[self.comparison](measured, self.number))

    def __str__(self) -> str:
        return f"{self.comparison} {number_text(self.number)}"


# From what a command wrote as JSON: the figure, and what to know about it ("" nothing).
ReadFigure = Callable[[Mapping[str, Any]], tuple[float, str]]


def named(name: str) -> ReadFigure:
    """The figure of that name."""
    return lambda found: (found[name], "")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One measurement, which several claims may rest on.

    Args:
        name: of the files that hold its figures and what it said.
        line: for a shell in the root of the repository; `{figures}` stands for the JSON that it
            writes.
        prepare: a line that comes first; its time is not measured.
        needs: `gpu`, `corpora`, a path from the root, or a name that `importlib` knows.
        is_long: run only when asked for.
        is_promise: what is claimed is that the command itself ends well.
    """

    name: str
    line: str
    prepare: str = ""
    needs: tuple[str, ...] = ()
    is_long: bool = False
    is_promise: bool = False

    @property
    def figures(self) -> str:
        """The JSON that it writes, from the root of the repository."""
        return f"{SCRATCH}/{self.name}.json"

    @property
    def typed(self) -> str:
        """Its line as a shell takes it."""
        return self.line.replace("{figures}", self.figures)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the proof.

    Args:
        id: what it is asked for by.
        claim: in one line.
        command: what measures it.
        figure: reads the figure from what the command wrote.
        unit: of the figure.
        goal: what the figure has to be.
        readme: words of README that rest on it; `{measured}` and `{goal}` may stand in them.
    """

    id: str
    claim: str
    command: Command
    figure: ReadFigure
    unit: str
    goal: Goal
    readme: str = ""


def figure_claim(id: str, claim: str, command: Command, unit: str, goal: Goal) -> Claim:
    """A claim whose figure its command writes under the claim's own name.

    Args:
        id: with hyphens, where the figure's name has underscores.
        claim: in words.
        command: what measures it.
        unit: of the figure.
        goal: what it has to be.
    """
    return Claim(
        id=id,
        claim=claim,
        command=command,
        figure=named(id.replace("-", "_")),
        unit=unit,
        goal=goal,
    )


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Where and when a figure was measured."""

    device: str
    versions: str
    commit: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known about a claim.

    Args:
        id: of the claim.
        claim: in one line.
        command: what measures it.
        prepare: what comes before that.
        measured: None where no figure was found.
        unit: of the figure.
        goal: as text.
        verdict: PASS and MISS were run.
        why: why there is no figure, or what to know about it.
        readme: words that README has to hold.
        device: of the machine.
        versions: of what was run.
        commit: of the repository.
        date: UTC.
    """

    id: str
    claim: str
    command: str
    prepare: str
    measured: float | None
    unit: str
    goal: str
    verdict: Verdict
    why: str
    readme: str
    device: str
    versions: str
    commit: str
    date: str


def judged(claim: Claim, figures: Mapping[str, Any], circumstances: Circumstances) -> Row:
    """The row of a claim whose command left figures."""
    try:
        measured, note = claim.figure(figures)
        measured = float(measured)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = f"its figures are not as expected: {type(error).__name__} {error}"
        return without_figure(claim, "NOT RUN", reason, circumstances)
    if not isfinite(measured):
        return without_figure(claim, "MISS", f"found {measured}", circumstances)
    # Judged as it is written down, so that the rows bear themselves out.
    measured = float(f"{measured:.{_SIGNIFICANT_DIGITS}g}")
    row = without_figure(claim, "NOT RUN", note, circumstances)
    return _with_verdict(claim, replace(row, measured=measured))


def _with_verdict(claim: Claim, row: Row) -> Row:
    assert row.measured is not None
    words = claim.readme.format(measured=row.measured, goal=claim.goal.number)
    verdict: Verdict = "PASS" if claim.goal.is_met(row.measured) else "MISS"
    return replace(row, verdict=verdict, readme=words)


def without_figure(claim: Claim, verdict: Verdict, why: str, circumstances: Circumstances) -> Row:
    """The row of a claim that was not run, or whose command failed."""
    return Row(
        id=claim.id,
        claim=claim.claim,
        command=claim.command.typed,
        prepare=claim.command.prepare,
        measured=None,
        unit=claim.unit,
        goal=str(claim.goal),
        verdict=verdict,
        why=without_paths(why),
        readme="",
        **asdict(circumstances),
    )


def kept(claim: Claim, row: Row) -> Row | None:
    """An earlier row under the words and goal of today; None if it was not run in this way."""
    same_way = (row.command, row.prepare, row.unit) == (
        claim.command.typed,
        claim.command.prepare,
        claim.unit,
    )
    if row.verdict == "NOT RUN" or not same_way:
        return None
    row = replace(row, claim=claim.claim, goal=str(claim.goal))
    return row if row.measured is None else _with_verdict(claim, row)


def without_paths(text: str) -> str:
    """Names in place of this machine's paths.

    >>> without_paths("/home/me/runs/a.json: gone; see https://example.org/a/b")
    'a.json: gone; see https://example.org/a/b'
    """
    return _PATH.sub("", text)


def number_text(number: float) -> str:
    """A number for people.

    >>> number_text(300_000), number_text(0.0312), number_text(2.0)
    ('300,000', '0.0312', '2')
    """
    return f"{number:,.0f}" if number == int(number) else f"{number:,.{_decimals(number)}f}"


def _decimals(number: float) -> int:
    digits = f"{abs(number):.{_SIGNIFICANT_DIGITS}g}"
    return len(digits.partition(".")[2]) if "e" not in digits else _SIGNIFICANT_DIGITS


def as_markdown(rows: Sequence[Row]) -> str:
    """PROOF.md: what was found, then how and where."""
    verdicts = [row.verdict for row in rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("PASS", "MISS", "NOT RUN"))
    lines = [
        "# Proof",
        "",
        f"{counts}. Written by `make proof`; `make proof ONLY=<id>` reruns one row, `ALL=1` runs "
        "those that take long too.",
        "",
        "| id | claim | measured | goal | unit | verdict | why, or what to know |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for row in rows:
        measured = "" if row.measured is None else number_text(row.measured)
        cells = (row.id, row.claim, measured, row.goal, row.unit, row.verdict, row.why)
        lines.append(_line(cells))
    lines += ["", "## How, where and when", ""]
    lines += ["| rows | command | device | versions | commit | date |", "|---|---|---|---|---|---|"]
    ways: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        command = f"`{row.prepare}`, then `{row.command}`" if row.prepare else f"`{row.command}`"
        way = (command, row.device, row.versions, row.commit, row.date)
        ways.setdefault(way, []).append(row.id)
    lines += [_line((", ".join(ids), *way)) for way, ids in ways.items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
