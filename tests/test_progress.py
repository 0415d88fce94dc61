"""How far something is: lines in a pipe, a bar on a terminal, nothing in between."""

import re

import pytest

from meloformer import progress


def counted(monkeypatch: pytest.MonkeyPatch, seconds_per_line: float) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", seconds_per_line)
    with progress.shown("encoding [captions]", "texts") as tell:
        for done in range(1, 4):
            tell(1000 * done, 3000)


def test_where_there_is_no_terminal_lines_say_how_far_it_is_and_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted(monkeypatch, 0.0)
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith("encoding [captions]: 1,000 of 3,000 texts")
    pattern = r"encoding \[captions\]: 2,000 of 3,000 texts, eta \d:\d\d:\d\d"
    assert re.fullmatch(pattern, second)


def test_parts_are_counted_each_on_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.0)
    with progress.shown("judging", "pieces") as tell:
        for part in ("text", "none"):
            for done in (0, 16):
                tell(done, 96, part)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" pieces")[0] for line in lines] == [
        "judging, text: 0 of 96",
        "judging, text: 16 of 96",
        "judging, none: 0 of 96",
        "judging, none: 16 of 96",
    ]


def test_what_takes_no_time_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted(monkeypatch, 30.0)
    with progress.shown("what is there already", "texts"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    counted(monkeypatch, 0.0)
    said = capsys.readouterr()
    assert said.out == "" and "3000/3000" in said.err and "eta" not in said.err
