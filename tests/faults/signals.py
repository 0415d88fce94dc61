"""Rows of the table of faults: signals that stop a run between two steps, with a checkpoint."""

import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from meloformer.training.checkpoint import step_folders
from tests.faults.rows import Drill, FaultRow, fault, flags
from tests.faults.runs import FaultError, Run, damaged_checkpoints
from tests.training.launching import deepspeed, free_port, torchrun

SIGNAL_AFTER = 5
ROWS_OF_A_LONG_VALIDATION = 200
# Between a launcher and a rank: writes down the rank's status. It bears the signals, and those that
# it traps are not ignored by what it starts.
RECORDER = """#!/usr/bin/env bash
trap : TERM USR1 INT
case $1 in --local_rank=*) shift ;; esac
python -u "$@"
status=$?
echo "$status" > "$STATUSES/$RANK"
exit "$status"
"""


@fault("SIGTERM to one rank", ranks=2)
def sigterm_to_one_rank(drill: Drill) -> FaultRow:
    """The others stop with it, and torchrun ends well."""
    return _stop(drill, torchrun(2), signal.SIGTERM, lambda run: [_ranks(run)[1]], is_clean=True)


@fault("SIGUSR1 to all ranks", ranks=2)
def sigusr1_to_all_ranks(drill: Drill) -> FaultRow:
    """The same by the signal that schedulers send."""
    return _stop(drill, torchrun(2), signal.SIGUSR1, lambda run: _ranks(run), is_clean=True)


@fault("SIGTERM to one rank in the middle of a validation", ranks=2)
def sigterm_in_a_validation(drill: Drill) -> FaultRow:
    """It does not wait for the rest."""
    long = {"validate_every": SIGNAL_AFTER, "validation_rows": ROWS_OF_A_LONG_VALIDATION}
    left_out = f"the validation after step {SIGNAL_AFTER} is left out"
    return _stop(
        drill,
        torchrun(2),
        signal.SIGTERM,
        lambda run: [_ranks(run)[0]],
        is_clean=True,
        said=left_out,
        **long,
    )


@fault("SIGTERM to every process with train.py in its command line, under torchrun", ranks=2)
def sigterm_to_all_under_torchrun(drill: Drill) -> FaultRow:
    """Launcher, ranks and data workers at once; torchrun itself does not end well."""
    return _stop(drill, torchrun(2), signal.SIGTERM, _all, num_workers=2)


@fault("SIGTERM to every process with train.py in its command line, under deepspeed", ranks=2)
def sigterm_to_all_under_deepspeed(drill: Drill) -> FaultRow:
    """The same with the other launcher."""
    return _stop(drill, deepspeed(2, free_port()), signal.SIGTERM, _all, num_workers=2)


@fault("SIGTERM to every process with train.py in its command line, by one_node.sh", ranks=2)
def sigterm_to_all_by_the_recipe(drill: Drill) -> FaultRow:
    """The recipe ends with status 0, and what the run says last is the last line."""
    return _stop(drill, None, signal.SIGTERM, _all, is_clean=True, num_workers=2)


ROWS = [
    sigterm_to_one_rank,
    sigusr1_to_all_ranks,
    sigterm_in_a_validation,
    sigterm_to_all_under_torchrun,
    sigterm_to_all_under_deepspeed,
    sigterm_to_all_by_the_recipe,
]


def _stop(
    drill: Drill,
    launcher: list[str] | None,
    number: signal.Signals,
    whom: Callable[[Run], list[psutil.Process]],
    *,
    is_clean: bool = False,
    said: str = "",
    **changes: Any,
) -> FaultRow:
    """Stop a run by a signal, judge how it ends, go on and judge the losses.

    Args:
        drill: of the row.
        launcher: command that starts ranks; the recipe for one machine if not given.
        number: the signal.
        whom: to whom it goes.
        is_clean: whether the launcher has to end with 0, and the run to have the last word.
        said: words that the run has to say on its way.
        changes: flags of the run that is stopped.
    """
    with _start(drill, launcher, **changes) as run:
        run.wait_for_step(SIGNAL_AFTER)
        for process in whom(run):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        struck = run.strike()
        run.wait_until(
            lambda: re.search("stopped by", "".join(run.train_log()[-1:])),
            "word of the stop",
            while_it_runs=False,
        )
        detected = struck.seconds()
        status = run.wait_for_end()
        statuses = drill.output / "statuses"
        if launcher:
            # deepspeed ends at the signal, before the ranks that it has started.
            run.wait_until(
                lambda: sum(path.stat().st_size > 0 for path in statuses.iterdir()) == 2,
                "status of each rank",
                while_it_runs=False,
            )
        complaints = [
            *_complaints(run, number),
            *(_wrong_statuses(statuses) if launcher else []),
            *([f"no word of: {said}"] if said not in run.said() else []),
            *run.left_behind(),
        ]
        if is_clean:
            last = run.last_lines(1)
            complaints += [f"the launcher ended with {status}"] if status else []
            complaints += [] if "stopped by" in last else [f"another last line: {last}"]
    # Under torchrun, whatever it was before: the steps are the same.
    return drill.go_on(struck, detected_s=detected, complaints=complaints)


def _start(drill: Drill, launcher: list[str] | None, **changes: Any) -> Run:
    folder = drill.output / "run"
    if launcher is None:
        words = flags(2, data=drill.shards, output=folder, **changes)
        command = ["launch/cluster/one_node.sh", *words]
        variables = {"LAUNCHER": "torchrun", "GPUS": "2"}
        return Run(command, folder, drill.output / "run.log", variables)
    statuses = drill.output / "statuses"
    statuses.mkdir(parents=True)
    recorder = drill.output / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    return drill.start(
        2,
        launcher=[*launcher, "--no_python", str(recorder)],
        environment={"STATUSES": str(statuses)},
        **changes,
    )


def _complaints(run: Run, number: signal.Signals) -> list[str]:
    """What is wrong about what a run that was stopped has left."""
    if not (done := max(run.losses(), default=0)):
        raise FaultError("the run had not begun")
    found, last = run.train_log()[-1], f"saved step {done}, stopped by {number.name}"
    wrong = [] if found.endswith(f" {last}") else [f"last line of train.log: {found}"]
    newest = max((int(f.name.partition("-")[2]) for f in step_folders(run.folder)), default=0)
    if newest != done:
        wrong.append(f"the newest checkpoint is of step {newest}, the last step was {done}")
    if (run.folder / "model").exists():
        wrong.append("a run that has not got to its end has written its model")
    return [*wrong, *damaged_checkpoints(run.folder)]


def _wrong_statuses(folder: Path) -> list[str]:
    found = {path.name: path.read_text().strip() for path in folder.iterdir()}
    return [] if found == {"0": "0", "1": "0"} else [f"statuses by rank: {found}"]


def _ranks(run: Run) -> list[psutil.Process]:
    """The ranks themselves, which the recorders have started."""
    return [rank.children()[0] for _, rank in sorted(run.ranks().items())]


def _all(run: Run) -> list[psutil.Process]:
    """As `pkill -f train.py` finds them, of this run alone."""
    found = []
    for process in run.processes():
        with suppress(psutil.Error):
            if "train.py" in " ".join(process.cmdline()):
                found.append(process)
    return found
