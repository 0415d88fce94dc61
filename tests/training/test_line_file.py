from pathlib import Path

import pytest

from meloformer.training.line_file import LineFile
from tests.training.full_disk import largest_file


def test_lines_that_the_disk_refuses_come_in_their_order_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = LineFile(path)
    lines.add("first")
    with largest_file(10):
        for line in ("second", "third"):
            with pytest.raises(OSError, match="File too large"):
                lines.add(line)
        assert path.read_bytes() == b"first\nseco", "what had room"
    lines.add("fourth")
    lines.close()
    assert path.read_text().splitlines() == ["first", "second", "third", "fourth"]
    LineFile(path).close()
    assert len(path.read_text().splitlines()) == 4, "opening adds nothing"


def test_what_waits_is_written_at_the_end_if_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = LineFile(path)
    with largest_file(0), pytest.raises(OSError, match="File too large"):
        lines.add("first")
    lines.close()
    assert path.read_text() == "first\n"
