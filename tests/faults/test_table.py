import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults import table
from tests.faults.rows import Drill, Fault, FaultRow, SkippedError, compare, fault
from tests.faults.runs import TIME_LIMIT_SECONDS, FaultError, Run, damaged_checkpoints
from tests.training.launching import python

ROW = FaultRow(fault="a cable is cut", ranks=2, outcome="PASS")


def drill(folder: Path) -> Drill:
    return Drill(folder, folder / "drill", lambda num_ranks: {})


def test_every_row_of_the_table_has_a_name_and_words_of_its_own() -> None:
    faults = table.faults_of()
    assert len({fault.name for fault in faults}) == len(faults)
    assert len({fault.words for fault in faults}) == len(faults)
    assert all(fault.ranks in (2, 3, 4) for fault in faults)


@pytest.mark.parametrize(
    "words",
    [
        "SIGKILL of one rank at a random step",
        "in the middle of a save",
        "in the first step",
        "SIGKILL of one rank, brought back by torchrun",
        "random step, under the deepspeed launcher",
        "disk full during a save",
        "checkpoint's file is cut short",
        "a bit of a checkpoint",
        "SIGTERM to one rank",
        "SIGUSR1 to all ranks",
        "SIGTERM to every process with train.py in its command line, under torchrun",
        "SIGTERM to every process with train.py in its command line, under deepspeed",
        "SIGKILL of a data worker",
        "SIGSTOP of a data worker",
        "SIGSTOP of the second rank",
        "a rank that sleeps in its step",
        "out of memory on one rank",
        "loses its network",
        "of four ranks",
    ],
)
def test_no_fault_that_was_promised_is_absent(words: str) -> None:
    assert table.faults_of([words])


def test_a_word_that_no_row_holds_is_refused_with_the_rows_there_are() -> None:
    with pytest.raises(ValueError, match=r"--only earthquake: .*kill_at_a_random_step"):
        table.faults_of(["kill", "earthquake"])


def test_two_rows_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FAULTS", [table.FAULTS[0], table.FAULTS[0]])
    with pytest.raises(ValueError, match="one name"):
        table.faults_of()


def raising(error: Exception) -> Fault:
    @fault("it strikes", ranks=3)
    def row(drill: Drill) -> FaultRow:
        raise error

    return row


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (FaultError("a hang"), "FAIL: a hang"),
        (psutil.NoSuchProcess(1, msg="gone"), "FAIL: gone (pid=1)"),
        (KeyError(1), "FAIL: 1"),
        (SkippedError("no mount"), "SKIPPED: no mount"),
    ],
)
def test_a_drill_that_goes_wrong_is_a_row_that_says_why(
    error: Exception, outcome: str, tmp_path: Path
) -> None:
    said: list[str] = []
    (row,) = table.play([raising(error)], tmp_path, tmp_path, 0, said.append)
    assert row == FaultRow(fault="it strikes", ranks=3, outcome=outcome)
    assert said[0].startswith(f"it strikes | 3 | - | - | - | - | {outcome} (")


def test_the_table_has_a_line_per_row_and_the_json_all_of_it(tmp_path: Path) -> None:
    full = replace(ROW, detected_s=1.25, recovered_s=20.0, steps_lost=3, loss_difference=0.0)
    failed = replace(ROW, outcome="FAIL: losses differ\nand so on")
    assert table.markdown([full, failed]).splitlines()[2:] == [
        "| a cable is cut | 2 | 1.2 | 20.0 | 3 | 0 | PASS |",
        "| a cable is cut | 2 | - | - | - | - | FAIL: losses differ |",
    ]
    table.save_json(tmp_path / "rows.json", [full, failed], seed=7)
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["seed"] == 7
    assert [row["outcome"] for row in found["rows"]] == ["PASS", failed.outcome]


def test_losses_are_equal_only_where_every_step_is_there_once_and_the_same() -> None:
    assert compare({1: 2.0, 2: 1.5}, {1: 2.0, 2: 1.5}) == (0.0, [])
    gap, wrong = compare({1: 2.0, 2: 1.25}, {1: 2.0, 2: 1.5, 3: 1.0})
    assert gap == 0.25
    assert wrong == ["steps [3] on one side only", "losses differ by 0.25"]
    assert compare({}, {1: 2.0})[0] == float("inf")


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_complained_of(tmp_path: Path) -> None:
    assert damaged_checkpoints(tmp_path) == ["no checkpoint"]
    (tmp_path / "checkpoints/step-3").mkdir(parents=True)
    (complaint,) = damaged_checkpoints(tmp_path)
    assert "step-3" in complaint


def test_what_a_launcher_leaves_behind_is_found_and_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "sleep = 'import time; time.sleep(600)'\n"
        "print(subprocess.Popen([sys.executable, '-c', sleep], start_new_session=True).pid)\n"
    )
    run = Run([*python(), "-c", script], tmp_path / "run", tmp_path / "run.log", {})
    with run:
        assert run.wait_for_end() == 0
        (left,) = run.processes()
        assert left.pid == int(run.said())
    left.wait(TIME_LIMIT_SECONDS)
    assert not run.processes()


def test_a_wait_ends_with_the_run_and_with_its_last_lines(tmp_path: Path) -> None:
    command = [*python(), "-c", "print('so far'); raise SystemExit(3)"]
    with (
        Run(command, tmp_path / "run", tmp_path / "run.log", {}) as run,
        pytest.raises(FaultError, match="ended with 3 before step 4: so far"),
    ):
        run.wait_for_step(4)


def test_a_run_that_does_not_end_is_called_a_hang(tmp_path: Path) -> None:
    command = [*python(), "-c", "import time; time.sleep(600)"]
    with (
        Run(command, tmp_path / "run", tmp_path / "run.log", {}) as run,
        pytest.raises(FaultError, match="a hang"),
    ):
        run.wait_for_end(limit_seconds=0.2)
    assert run.launcher.returncode == -9
