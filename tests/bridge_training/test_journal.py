"""What a bridge's training leaves behind of itself, also on a disk that is full."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from meloformer.bridge_training.journal import Journal
from meloformer.training.doing import DOING_NAME
from meloformer.training.metrics import LOG_NAME, METRICS_NAME, VALIDATION_NAME
from tests.training.full_disk import largest_file, meet_the_full_disk


def figures(step: int, **other: Any) -> dict[str, Any]:
    known = {"lr": 1e-3, "grad_norm": 0.5, "rows_per_second": 9.0, "eta_seconds": 60.0}
    return {"step": step, "loss": 1 / step, **known, **other}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_figures_stand_in_lines_and_in_tensorboard(tmp_path: Path) -> None:
    journal = Journal(tmp_path, start_step=0, num_steps=4, is_first=True)
    for step in (1, 2, 3, 4):
        journal.step(figures(step, loss=None if step == 3 else 1 / step, memory=None))
    journal.validation(4, {"loss": 0.25, "ema_loss": 0.125})
    journal.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / METRICS_NAME).open()] == [
        1, 0.5, None, 0.25,
    ]  # fmt: skip
    shown = scalars(tmp_path)
    assert shown["train/loss"] == [(1, 1), (2, 0.5), (4, 0.25)]
    assert shown["valid/loss"] == [(4, 0.25)] and shown["valid/ema_loss"] == [(4, 0.125)]
    assert "train/memory" not in shown and "train/step" not in shown


def test_a_start_drops_what_a_later_step_left_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path, start_step=0, num_steps=4, is_first=True)
    for step in (1, 2, 3):
        journal.step(figures(step))
        journal.validation(step, {"loss": float(step)})
    journal.close()
    again = Journal(tmp_path, start_step=2, num_steps=4, is_first=True)
    again.step(figures(3, loss=7.0))
    again.close()
    assert steps_of(tmp_path / METRICS_NAME) == [1, 2, 3]
    assert steps_of(tmp_path / VALIDATION_NAME) == [1, 2]
    assert scalars(tmp_path)["train/loss"] == [(1, 1), (2, 0.5), (3, 7)]


def test_a_full_disk_ends_no_run_and_lines_follow_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, start_step=0, num_steps=9, is_first=True)
    journal.step(figures(1))
    with largest_file(0):
        journal.step(figures(2))
        meet_the_full_disk(journal._board)
        journal.validation(2, {"loss": 1.0})
    journal.step(figures(3))
    journal.close()
    assert steps_of(tmp_path / METRICS_NAME) == [1, 2, 3]
    assert capsys.readouterr().out.count("figures are not written") == 1


def test_those_who_watch_are_told_what_takes_long(tmp_path: Path) -> None:
    def told() -> str:
        return journal._moment

    journal = Journal(tmp_path, start_step=0, num_steps=9, is_first=True)
    assert told() == "before the first step"
    with journal.during("training attribute heads"):
        assert told() == "training attribute heads"
    journal.step(figures(1))
    assert told() == "step 2"
    journal.close()
    assert not (tmp_path / DOING_NAME).exists()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, start_step=0, num_steps=1, is_first=False)
    journal.say("a word")
    with journal.during("validating"), journal.watch_validation(1, 2) as advance:
        advance()
    journal.step(figures(1))
    journal.validation(1, {"loss": 1.0})
    journal.close()
    assert not list(tmp_path.iterdir())


def test_words_come_every_few_steps_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, start_step=0, num_steps=12, is_first=True)
    for step in range(1, 13):
        journal.step(figures(step, loss=None if step == 12 else 0.5))
    journal.close()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "step 10/12, loss 0.5000, 9.0 rows/s, eta 0:01:00",
        "step 12/12, loss not finite, 9.0 rows/s, eta 0:01:00",
    ]
    assert all(line in (tmp_path / LOG_NAME).read_text() for line in said)
