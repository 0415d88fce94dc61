"""All rows of the table of faults: played one by one, printed as they come, none absent."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults import damage, kills, memory, network, saves, signals, stalls
from tests.faults.rows import Drill, Fault, FaultRow, train_undisturbed

FAULTS: list[Fault] = [
    *kills.ROWS,
    *saves.ROWS,
    *damage.ROWS,
    *signals.ROWS,
    *stalls.ROWS,
    *memory.ROWS,
    *network.ROWS,
]

COLUMNS = (
    "fault",
    "ranks",
    "detected after s",
    "recovered after s",
    "steps lost",
    "largest loss difference",
    "outcome",
)


def faults_of(words: Sequence[str] = ()) -> list[Fault]:
    """Rows whose name or words hold one of these; all of them if none is given.

    Raises:
        ValueError: one of them is found nowhere, or two rows have one name.
    """
    names = [fault.name for fault in FAULTS]
    if len(set(names)) < len(names):
        raise ValueError(f"two rows of one name: {sorted(names)}")
    for word in words:
        if not any(_holds(fault, word) for fault in FAULTS):
            raise ValueError(f"--only {word}: no such row; allowed: part of {', '.join(names)}")
    return [fault for fault in FAULTS if not words or any(_holds(fault, word) for word in words)]


def _holds(fault: Fault, word: str) -> bool:
    return word in f"{fault.name} {fault.words}"


def play(
    faults: Sequence[Fault],
    shards: Path,
    output: Path,
    seed: int,
    tell: Callable[[str], None],
) -> list[FaultRow]:
    """Play faults one after another; a run that nothing befalls is shared by those alike.

    Args:
        faults: the rows.
        shards: what all of them train on.
        output: a new folder.
        seed: of the moments that are drawn.
        tell: called with each row as soon as it is done.
    """
    losses = shared_undisturbed(shards, output)
    rows = []
    for fault in faults:
        began = time.monotonic()
        rows.append(fault(Drill(shards, output / fault.name, losses, seed)))
        tell(f"{' | '.join(cells(rows[-1]))} ({time.monotonic() - began:.0f} s, {fault.name})")
    return rows


def shared_undisturbed(shards: Path, output: Path) -> Callable[..., dict[int, float]]:
    """What a drill asks for the losses of runs that nothing befalls; each is played once."""
    played: dict[tuple, dict[int, float]] = {}

    def losses(num_ranks: int, **changes: object) -> dict[int, float]:
        key = (num_ranks, *sorted(changes.items()))
        if key not in played:
            folder = output / f"undisturbed-{len(played)}"
            played[key] = train_undisturbed(shards, folder, num_ranks, **changes)
        return played[key]

    return losses


def cells(row: FaultRow) -> list[str]:
    """A row in words, one cell per column."""

    def number(value: float | None, style: str) -> str:
        return "-" if value is None else format(value, style)

    return [
        row.fault,
        str(row.ranks),
        number(row.detected_s, ".1f"),
        number(row.recovered_s, ".1f"),
        number(row.steps_lost, "d"),
        number(row.loss_difference, "g"),
        row.outcome,
    ]


def markdown(rows: Sequence[FaultRow]) -> str:
    """The whole table; of a reason that has many lines, the first."""
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    for row in rows:
        *first, outcome = cells(row)
        lines.append([*first, outcome.splitlines()[0]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_json(path: Path, rows: Sequence[FaultRow], seed: int) -> None:
    """Write the rows for other programs."""
    facts = {"seed": seed, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(facts, indent=2) + "\n")
