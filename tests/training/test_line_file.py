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
        assert path.read_bytes() == b"first\n", "whole lines only, though there was room for more"
    lines.add("fourth")
    assert lines.close() == 0
    assert path.read_text().splitlines() == ["first", "second", "third", "fourth"]
    LineFile(path).close()
    assert len(path.read_text().splitlines()) == 4, "opening adds nothing"


def test_what_waits_is_written_at_the_end_if_it_can_be_and_counted_if_not(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = LineFile(path)
    with largest_file(0), pytest.raises(OSError, match="File too large"):
        lines.add("first")
    assert lines.close() == 0
    assert path.read_text() == "first\n"
    lines = LineFile(path)
    with largest_file(6):
        for line in ("second", "third"):
            with pytest.raises(OSError, match="File too large"):
                lines.add(line)
        assert lines.close() == 2
    assert path.read_text() == "first\n"


def test_half_a_line_that_a_killed_process_left_is_gone_when_the_file_is_opened(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines"
    for left, kept in (("one\ntwo\nthr", "one\ntwo\n"), ("thr", ""), ("", ""), ("one\n", "one\n")):
        path.write_text(left)
        lines = LineFile(path)
        assert path.read_text() == kept
        lines.add("next")
        lines.close()
        assert path.read_text() == f"{kept}next\n"


@pytest.mark.parametrize("room", [0, 6, 12])
@pytest.mark.parametrize("last", ["0", "1", "2", "3"])
def test_lines_are_cut_at_one_of_them_whether_they_are_written_or_wait_and_without_room(
    room: int, last: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_text("line0\nline1\n"[:room])  # 0 to 2 lines lie there, the rest waits
    lines = LineFile(path)
    with largest_file(0):
        for number in range(room // 6, 4):
            with pytest.raises(OSError, match="File too large"):
                lines.add(f"line{number}")
        gone = lines.keep_while(lambda line: line <= f"line{last}")
        assert gone == [f"line{number}" for number in range(int(last) + 1, 4)]
        assert path.read_text() == "line0\nline1\n"[: min(room, 6 * (int(last) + 1))]
    lines.add("next")
    lines.close()
    kept = [f"line{number}" for number in range(int(last) + 1)]
    assert path.read_text().splitlines() == [*kept, "next"]
