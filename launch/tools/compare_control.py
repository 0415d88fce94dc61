"""Which of several judged bridges or ways to inject is ahead in what, piece by piece.

    python launch/tools/compare_control.py reports/replace reports/blend-0.5 reports/adapter
    python launch/tools/compare_control.py reports/q reports/flow-4 --names Q-Former "4 steps"
    python launch/tools/compare_control.py reports/a reports/b --row text true --output verdict.md
    python launch/tools/compare_control.py reports/en reports/zh --allow_other_texts

Reads what launch/evaluate.py --control has written into each folder (control.json, pieces.jsonl).
All have to be judged on the same pieces by the same texts. Prints Markdown: settings that differ,
a table for each way of writing, nats per note, each report less the first one with 95 % intervals
over pieces, and in the last line who wins what. What only one of them has been judged in (--rows
and --ways of the judge) is shown and held against nothing.

Exit code: 0, or 2 where the reports cannot be paired.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from meloformer.command_line import check_output_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.evaluation.control_comparison_report import comparison_lines, save_lines
from meloformer.evaluation.control_pairs import check_same_pieces, read_report
from meloformer.evaluation.control_report import JSON_NAME, MARKDOWN_NAME, PIECES_NAME
from meloformer.evaluation.control_rows import WRITTEN_SOURCES, WrittenSource


@dataclass(frozen=True, kw_only=True)
class CompareControlConfig:
    """Flags of launch/tools/compare_control.py."""

    reports: tyro.conf.Positional[tuple[Path, ...]]
    """Report folders; the others are held against the first."""
    row: tuple[WrittenSource, ...] = ("text",)
    """Who said what was written; rows that a report was judged without are named."""
    names: tuple[str, ...] = ()
    """Short names of the reports; those of the folders if none are given."""
    allow_other_texts: bool = False
    """The same pieces under other texts will do, as those of another language."""
    output: Path | None = None
    """Write the comparison to this file too."""

    def __post_init__(self) -> None:
        if len(self.reports) < 2:
            raise ConfigError(
                f"found {len(self.reports)} report folders; allowed: 2 or more to be compared"
            )
        if not self.row:
            raise ConfigError(f"--row: found none; allowed: {', '.join(WRITTEN_SOURCES)}")
        if self.names and len(self.names) != len(self.reports):
            raise ConfigError(
                f"--names: found {len(self.names)} for {len(self.reports)} reports; allowed: one "
                "each"
            )
        for name in self.called:
            if not name.strip() or {"|", "\n"} & set(name) or self.called.count(name) > 1:
                raise ConfigError(
                    f"a report called {name!r}: allowed: a word of its own for each, without |; "
                    "give --names"
                )
        check_output_file("--output", self.output)
        files = (JSON_NAME, MARKDOWN_NAME, PIECES_NAME)
        kept = {(folder / file).resolve() for folder in self.reports for file in files}
        if self.output is not None and self.output.resolve() in kept:
            raise ConfigError(
                f"--output {self.output}: found a file of a report that is compared; allowed: "
                "another"
            )

    @property
    def called(self) -> tuple[str, ...]:
        """What each report is called."""
        return self.names or tuple(folder.resolve().name for folder in self.reports)


def main(config: CompareControlConfig) -> None:
    """Read, pair, print, write."""
    reports = [
        read_report(folder, name)
        for folder, name in zip(config.reports, config.called, strict=True)
    ]
    notes = check_same_pieces(reports, allow_other_texts=config.allow_other_texts)
    lines = comparison_lines(reports, config.row, notes)
    if config.output is not None:
        save_lines(config.output, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    run_recipe(main, CompareControlConfig)
