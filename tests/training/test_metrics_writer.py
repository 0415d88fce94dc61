import json
import re
from pathlib import Path

import pytest

from meloformer.training import metrics_writer
from meloformer.training.metrics import LOG_NAME, VALIDATION_NAME
from meloformer.training.metrics_writer import MetricsWriter
from meloformer.training.nats import Nats
from tests.training.full_disk import largest_file


def test_a_long_validation_says_how_far_it_is_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watched(seconds_per_line: float) -> str:
        monkeypatch.setattr(metrics_writer, "_SECONDS_PER_LINE", seconds_per_line)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_ends_no_run_and_lines_follow_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = MetricsWriter(tmp_path, start_step=0, num_steps=9, is_first=True)
    scores = {
        "all": Nats(
            per_token=1.0, per_note=2.0, per_kind={"PITCH": 3.0}, num_targets=2, num_notes=1
        )
    }
    writer.validation(1, scores)
    with largest_file(0):
        writer.validation(2, scores)
        assert writer._board is not None
        with pytest.raises(OSError, match="File too large"):
            writer._board.flush()  # which TensorBoard does every two minutes, and then dies
        writer.validation(3, scores)
        assert writer._board is None
        writer.validation(4, scores)
    writer.validation(5, scores)
    writer.close()
    lines = (tmp_path / VALIDATION_NAME).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    said = capsys.readouterr()
    assert said.out.count("figures are not written (File too large); the run goes on") == 1
    assert "Logging error" not in said.err
