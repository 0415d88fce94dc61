"""Say where two runs part: the first step whose numbers differ, and what could be why.

    python launch/tools/compare_runs.py runs/<name> runs/<other>
    python launch/tools/compare_runs.py runs/<name> runs/<other> --tolerance 1e-4
    python launch/tools/compare_runs.py runs/<name> runs/<other> --json

Loss, tokens, learning rate and gradient norm of each step, to the last bit, and validations. Beside
them: settings, data, ranks, device and versions that differ, whether both trained on the same rows,
and the last checkpoint that both have from before the parting, to go on from and look. Two ranks
add up in another order than one: `--tolerance 1e-4` passes over that.

Exit code: 0 where no result differs, 1 where the runs part, 2 where a folder holds no run or the
two have no step in common.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.compare_runs import Comparison, Difference, compare_runs

# Of a table in a file or a pipe, where nobody's terminal says how wide it may be.
_TABLE_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class CompareRunsConfig:
    """Flags of launch/tools/compare_runs.py."""

    a: tyro.conf.Positional[Path]
    """A run folder."""
    b: tyro.conf.Positional[Path]
    """Another."""
    tolerance: float = 0.0
    """Results that lie no further apart are equal; relative for those above 1."""
    json: bool = False
    """Print one JSON object instead."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"--tolerance {self.tolerance:g}: allowed: 0 or more, below 1")


def main(config: CompareRunsConfig) -> int:
    comparison = compare_runs(config.a, config.b, tolerance=config.tolerance)
    if config.json:
        print(json.dumps(comparison.to_json(), indent=2))
    else:
        show(comparison)
    return int(comparison.parts)


def show(comparison: Comparison) -> None:
    """Tables of what differs, then the results in words."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_TABLE_WIDTH)
    console.print(f"A {comparison.a}\nB {comparison.b}", markup=False, highlight=False)
    for title, found in (("settings", comparison.settings), ("facts", comparison.facts)):
        if found:
            console.print(differences_table(f"{title} that differ", found))
        else:
            console.print(f"{title}: the same", highlight=False)
    for line in comparison.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def differences_table(title: str, found: tuple[Difference, ...]) -> Table:
    """What each run says."""
    table = Table("", "A", "B", title=title, title_justify="left")
    for difference in found:
        table.add_row(difference.name, *(str(value) for value in (difference.a, difference.b)))
    return table


if __name__ == "__main__":
    run_recipe(main, CompareRunsConfig)
