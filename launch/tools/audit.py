"""Check the trained weights of a run, and say PASS or FAIL with numbers.

    python launch/tools/audit.py --run runs/<name> --data data_shards/<name>
    python launch/tools/audit.py --run runs/<name> --data data_shards/<name> --skip resume ranks
    python launch/tools/audit.py --run runs/<name> --data data_shards/<name> --only copies split
    python launch/tools/audit.py --run runs/<name> --data data_shards/<name> --plant leak

split      nothing that is held out stands in training: exact copies, tunes, clusters of near copies
licences   every input of the shards has one; `--licence name=licence` states what no file said
future     no later token moves a logit: notes and tokens of validation windows are changed
neighbour  no neighbour in the row moves a logit
copies     generated bars stand in training no more often than those of held-out pieces do
resume     the run goes on after its checkpoint with the losses that it had
ranks      one rank and two have the same losses

The last two train --num_steps again, in a copy elsewhere; the run folder is read, and takes one
file, audit.json. It may have been trained on other devices than it is audited on: what losses may
then lie apart stands in the table. `--plant` breaks something in memory: its checks have to fail.

Exit code: 0 where all passed, 1 where something failed, 2 where nothing can be checked.
"""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from meloformer.benchmarks.audit import (
    AuditConfig,
    AuditRow,
    open_audit,
    run_audit,
    save_audit,
    table_head,
)
from meloformer.benchmarks.audit_checks import CHECKS_WITHOUT_TRAINING
from meloformer.benchmarks.audit_replays import training_checks
from meloformer.benchmarks.bench_tables import table_console
from meloformer.command_line import run_recipe

RECIPE = Path(__file__).resolve().parents[1] / "train.py"


def main(config: AuditConfig) -> int:
    console = table_console()
    audited = open_audit(config, RECIPE)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    table = table_head()
    rows: list[AuditRow] = []
    with (
        training_checks(audited) as (checks, estimate),
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        console.print(f"{audited.describe()}; {estimate}", markup=False, highlight=False)
        task = progress.add_task("", total=None)
        for row in run_audit(
            audited,
            CHECKS_WITHOUT_TRAINING | checks,
            lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        ):
            rows.append(row)
            table.add_row(*map(escape, row.cells()))
            line = f"{row.verdict} {row.what}: {row.measured}"
            progress.console.print(line, markup=False, highlight=False)
    console.print(table)
    if config.json_path is not None:
        save_audit(config.json_path, audited, rows)
        console.print(str(config.json_path), markup=False, highlight=False, soft_wrap=True)
    return int(not all(row.is_ok for row in rows))


if __name__ == "__main__":
    run_recipe(main, AuditConfig)
