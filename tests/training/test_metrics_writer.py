import re
from pathlib import Path

import pytest

from meloformer.training import metrics_writer
from meloformer.training.metrics import LOG_NAME
from meloformer.training.metrics_writer import MetricsWriter


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
