import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from meloformer.training import board, run_writer
from meloformer.training.metrics import LOG_NAME, METRICS_NAME, VALIDATION_NAME, StepMetrics
from meloformer.training.metrics_writer import MetricsWriter
from meloformer.training.nats import Nats
from tests.training.full_disk import largest_file, meet_the_full_disk


def test_a_long_validation_says_how_far_it_is_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watched(seconds_per_line: float) -> str:
        monkeypatch.setattr(run_writer, "_SECONDS_PER_LINE", seconds_per_line)
        writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
        with writer.watch_validation(9, num_batches=3) as advance:
            for _ in range(3):
                advance()
        writer.close()
        return capsys.readouterr().out

    said = watched(0.0).splitlines()
    assert len(said) == 2, "the end is said by the result"
    for batch, line in enumerate(said, start=1):
        assert re.fullmatch(rf"validation after step 9: batch {batch}/3, eta \d:\d\d:\d\d", line)
    assert "batch 2/3" in (tmp_path / LOG_NAME).read_text()
    assert watched(3600.0) == ""


def test_a_validation_moves_a_bar_of_its_own_where_there_is_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
    assert writer._progress is not None
    with writer.watch_validation(9, num_batches=4) as advance:
        advance()
        _, bar = writer._progress.tasks
        assert (bar.description, bar.completed, bar.total) == ("validate", 1, 4)
    assert [task.description for task in writer._progress.tasks] == ["train"]
    writer.close()


# What TensorBoard's thread would print.
no_tracebacks = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
SCORES = {
    "all": Nats(per_token=1.0, per_note=2.0, per_kind={"PITCH": 3.0}, num_targets=2, num_notes=1)
}


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def step_metrics(step: int) -> StepMetrics:
    names = {field.name for field in fields(StepMetrics)}
    values = dict.fromkeys(names) | {"step": step, "loss_by_kind": {}, "failed_saves": 0}
    numbers = "epoch tokens lr step_seconds tokens_per_second padding data_wait memory_host skipped"
    values |= dict.fromkeys([*numbers.split(), "rollbacks", "eta_seconds"], 1)
    return StepMetrics(**(values | {"dropped": {"why": f"of step {step}"}}))  # type: ignore[arg-type]


@no_tracebacks
def test_a_disk_that_is_full_ends_no_run_and_lines_follow_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "_SECONDS_BETWEEN_OPENINGS", 0.0)
    writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
    writer.validation(1, SCORES)
    with largest_file(0):
        writer.validation(2, SCORES)
        meet_the_full_disk(writer._board)
        writer.validation(3, SCORES)
        assert not writer._board.is_open
        writer.validation(4, SCORES)
    writer.validation(5, SCORES)
    writer.close()
    assert steps_of(tmp_path / VALIDATION_NAME) == [1, 2, 3, 4, 5]
    said = capsys.readouterr()
    assert said.out.count("figures are not written (File too large); the run goes on") == 1
    assert said.out.count("figures are written again") == 1
    assert said.err == "", "no traceback, of this thread or of TensorBoard's"


@no_tracebacks
@pytest.mark.parametrize("is_full_before", [False, True])
def test_a_run_goes_back_on_a_full_disk_and_its_account_stays_whole(
    is_full_before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
    for step in range(1, 4):
        writer.step(step_metrics(step))
        writer.validation(step, SCORES)
    with largest_file(0):
        if is_full_before:
            for step in (4, 5):
                writer.step(step_metrics(step))
        gone = writer.rewind(2)
        assert [line["dropped"]["why"] for line in gone] == [
            f"of step {step}" for step in ((3, 4, 5) if is_full_before else (3,))
        ]
        assert steps_of(tmp_path / METRICS_NAME) == steps_of(tmp_path / VALIDATION_NAME) == [1, 2]
        writer.step(step_metrics(3))
        assert steps_of(tmp_path / METRICS_NAME) == [1, 2]
    writer.step(step_metrics(4))
    writer.close()
    assert steps_of(tmp_path / METRICS_NAME) == [1, 2, 3, 4]
    assert steps_of(tmp_path / VALIDATION_NAME) == [1, 2]
    said = capsys.readouterr()
    assert said.out.count("figures are not written") == 1
    assert said.err == ""


@no_tracebacks
def test_figures_that_find_no_room_to_the_end_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
    writer.step(step_metrics(1))
    with largest_file(0):
        writer.step(step_metrics(2))
        writer.step(step_metrics(3))
        writer.close()
    said = capsys.readouterr()
    assert "no room for the last figures: lost are 2 lines of metrics.jsonl" in said.out
    assert said.err == ""


def test_a_start_forgets_what_it_will_do_again_and_what_a_kill_has_cut(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsWriter(tmp_path, start_step=2, num_steps=9, is_first=True).close()
    assert steps_of(tmp_path / METRICS_NAME) == [1, 2]
