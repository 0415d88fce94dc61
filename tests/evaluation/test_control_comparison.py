"""Reports beside each other: pairs are of one piece, and nobody is ahead who has not been shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.evaluation.control_comparison import (
    Difference,
    compared_rows,
    differences,
    measures_of,
    winner,
)
from meloformer.evaluation.control_comparison_report import comparison_lines, wins_line
from meloformer.evaluation.control_intervals import FEWEST_APART
from meloformer.evaluation.control_pairs import Report, check_same_pieces, read_report
from meloformer.evaluation.control_scores import Wanted
from tests.evaluation.control_reports import write_report

ROW = "text, summaries"


def read(*folders: Path) -> list[Report]:
    return [read_report(folder, folder.name) for folder in folders]


def compared(*folders: Path, sources=("text",), **kwargs) -> list[str]:
    reports = read(*folders)
    return comparison_lines(reports, sources, check_same_pieces(reports, **kwargs))


def found_in(reports: list[Report], where: str, name: str) -> list[Difference]:
    (measure,) = [m for m in measures_of(reports, [ROW]) if (m.where, m.name) == (where, name)]
    return list(differences(measure).values())


def cells(lines: list[str], *words: str) -> list[list[str]]:
    """Rows of tables that hold all these cells."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return [row for row in rows if set(words) <= set(row)]


def test_a_difference_is_taken_piece_by_piece_as_by_hand(tmp_path: Path) -> None:
    first = [0, 1, 0, 0, 0, 0, 0, 0]
    other = [1, 1, 1, 1, 1, 1, 1, 1]
    reports = read(
        write_report(tmp_path / "a", {ROW: {"key": first}}),
        write_report(tmp_path / "b", {ROW: {"key": other}}),
    )
    (found,) = found_in(reports, ROW, "key")
    assert (found.report, found.other, found.num_apart) == ("b", "a", 7)
    # Resamples are binomial, 8 draws at 7/8: 4 or fewer in 1.1 % of them, 5 or fewer in 6.7 %.
    assert (found.found.mean, found.found.low, found.found.high) == (87.5, 62.5, 100.0)
    lines = compared(tmp_path / "a", tmp_path / "b")
    (row,) = cells(lines, "b", "a", "key")
    assert row == ["b", "a", "key", "+87.5 [+62.5, +100.0] n 8", "ahead"]
    assert lines[-1].endswith("a: nothing. b: key (text, summaries).")


def test_pieces_are_paired_by_name_whatever_their_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    hard = random.random(40)
    a = write_report(
        tmp_path / "a", {ROW: {"instruments": hard}}, nats={"none": hard, "text": hard}
    )
    order = random.permutation(40).tolist()
    b = write_report(
        tmp_path / "b",
        {ROW: {"instruments": (hard + 0.01)[order]}},
        nats={"none": hard[order], "text": (hard - 0.5)[order]},
        keys=[f"key{place}" for place in order],
        texts=[f"text {place}" for place in order],
    )
    for where, name, gap in (
        (ROW, "instruments", 1.0),
        ("nats per note against none", "text", -0.5),
    ):
        (found,) = found_in(read(a, b), where, name)
        assert found.found.low == pytest.approx(gap) == found.found.high and found.word == "ahead"
    before = compared(a, b)
    path = b / "pieces.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    assert compared(a, b) == before


def test_the_judges_own_intervals_stand_in_the_tables(tmp_path: Path) -> None:
    shares = np.random.default_rng(1).integers(2, size=(2, 30)).astype(float)
    own = {"none": shares[0] + 3, "own": shares[1] + 2.5, "text": shares[1] + 2}
    for name in "ab":
        write_report(tmp_path / name, {ROW: {"key": shares[0], "metre": shares[1]}}, nats=own)
    lines, said = compared(tmp_path / "a", tmp_path / "b"), (tmp_path / "a/control.md").read_text()
    for words in (("report", "key", "metre"), ("report", "none", "text", "own")):
        header = lines.index(next(line for line in lines if set(words) <= set(line.split())))
        for row in (lines[header + 2], lines[header + 3]):
            for cell in row.split("|")[2:-1]:
                assert f"| {cell.strip()} " in said
    assert cells(lines, "b", "a", "key", "no difference shown")
    assert cells(lines, "b", "a", "text", "no difference shown")


def test_few_pieces_that_differ_show_nothing_though_the_bootstrap_believes_them(
    tmp_path: Path,
) -> None:
    for num_apart, word in (
        (FEWEST_APART - 1, "no difference shown: 5 pieces differ"),
        (FEWEST_APART, "behind"),
    ):
        values = np.repeat([1.0, 0.0], [num_apart, 20])
        a = write_report(tmp_path / "a", {ROW: {"key": values}})
        b = write_report(tmp_path / "b", {ROW: {"key": np.zeros(len(values))}})
        (found,) = found_in(read(a, b), ROW, "key")
        assert found.found.high < 0 and found.word == word
    all_one_way = [2 * 0.5**num_pieces for num_pieces in (FEWEST_APART, FEWEST_APART - 1)]
    assert all_one_way[0] < 0.05 < all_one_way[1]


def test_only_who_is_ahead_of_every_other_wins(tmp_path: Path) -> None:
    low, middle, high = np.zeros(20), np.repeat([1.0, 0.0], 10), np.ones(20)
    a = write_report(tmp_path / "a", {ROW: {"key": low, "metre": low, "density": middle}})
    b = write_report(tmp_path / "b", {ROW: {"key": middle, "metre": high, "density": middle}})
    c = write_report(tmp_path / "c", {ROW: {"key": high, "metre": high, "density": low}})
    reports = read(a, b, c)
    winners = {
        measure.name: winner(measure, differences(measure))
        for measure in measures_of(reports, [ROW])
    }
    assert winners == {"key": "c", "metre": None, "density": None}
    found = {measure: differences(measure) for measure in measures_of(reports, [ROW])}
    assert wins_line(reports, found).endswith("a: nothing. b: nothing. c: key (text, summaries).")
    words = {row[2]: row[4] for row in cells(compared(a, b, c), "c", "a")}
    assert words == {"key": "ahead", "metre": "ahead", "density": "behind"}


def test_fewer_nats_win_and_are_held_against_none_of_the_same_report(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).random(30)
    a = write_report(
        tmp_path / "a", {ROW: {"key": noise}}, nats={"none": noise + 5, "text": noise + 4}
    )
    b = write_report(
        tmp_path / "b", {ROW: {"key": noise}}, nats={"none": noise + 2, "text": noise + 1.5}
    )
    lines = compared(a, b)
    (row,) = cells(lines, "b", "a", "text")
    assert row[3:] == ["+0.500 in every piece, n 30", "behind"]
    assert lines[-1].endswith("a: text (nats per note against none). b: nothing.")


def test_higher_is_not_better_where_nobody_asked(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        rows = {f"{source}, summaries": {"key": [value] * 20} for source in ("shuffled", "true")}
        write_report(tmp_path / name, rows)
    lines = compared(tmp_path / "a", tmp_path / "b", sources=("shuffled", "true"))
    assert [row[4] for row in cells(lines, "b", "a", "key")] == ["higher", "ahead"]
    assert lines[-1].endswith("a: nothing. b: key (true, summaries).")


def test_each_way_has_a_table_and_the_first_that_has_the_row_is_held_against(
    tmp_path: Path,
) -> None:
    values = {"key": [1.0] * 10}
    told = {ROW: values, "text, strict": values}
    a = write_report(tmp_path / "a", {ROW: values})
    b, c = (write_report(tmp_path / name, told) for name in "bc")
    lines = compared(a, b, c)
    assert [line for line in lines if line.startswith("## text")] == [f"## {row}" for row in told]
    strict = lines[lines.index("## text, strict") :]
    assert "without this row: a" in strict
    assert [row[:3] for row in cells(strict, "no difference shown")] == [["c", "b", "key"]]
    with pytest.raises(ConfigError, match=r"--row true: found in no report; .* text"):
        compared_rows(read(a, b), ["true"])


def test_rows_that_were_left_out_are_compared_by_nobody(tmp_path: Path) -> None:
    values = {"key": [1.0] * 10}
    a = write_report(tmp_path / "a", {"none, summaries": values, "true, strict": values})
    b = write_report(tmp_path / "b", {"none, summaries": values, "true, summaries": values})
    with pytest.raises(ConfigError, match=r"--row text: found in no report; .* true none"):
        compared(a, b)
    lines = compared(a, b, sources=("none", "true"))
    words = [row[:3] for row in cells(lines, "no difference shown")]
    assert words == [["b", "a", "key"]], "what both have"
    assert [line for line in lines if line.startswith("without")] == [
        "without this row: a",
        "without this row: b",
    ]


def test_settings_that_differ_are_named_and_no_others(tmp_path: Path) -> None:
    for name, steps in (("a", 4), ("b", 20)):
        settings = {"seed": 0, "flow": {"steps": steps, "solver": "a|b"}}
        write_report(tmp_path / name, {ROW: {"key": [1.0] * 3}}, settings=settings)
    lines = compared(tmp_path / "a", tmp_path / "b")
    assert cells(lines, "flow.steps") == [["flow.steps", "4", "20"]]
    assert not any("solver" in line or "seed" in line for line in lines)
    assert "Settings: the same" in compared(tmp_path / "a", tmp_path / "a")


def test_under_other_texts_pieces_count_of_which_both_speak(tmp_path: Path) -> None:
    nan = np.nan
    a = write_report(tmp_path / "en", {ROW: {"key": [1, 1, 1, 1, 1, 1, 1, 1, nan, nan]}})
    b = write_report(
        tmp_path / "zh",
        {ROW: {"key": [nan, 0, 0, 0, 0, 0, 0, 0, 1, 1]}},
        texts=[f"文 {place}" for place in range(10)],
        wanted=[Wanted(key=3)] * 10,
    )
    with pytest.raises(ConfigError, match="10 of 10 pieces have another text") as refused:
        compared(a, b)
    assert "--allow_other_texts" in str(refused.value) and "text 0" in str(refused.value)
    lines = compared(a, b, allow_other_texts=True)
    assert any(line.startswith("- OTHER TEXTS: 10 of 10") and "zh" in line for line in lines)
    (row,) = cells(lines, "zh", "en", "key")
    assert row[3:] == ["-100.0 in every piece, n 7", "behind"]
    assert not any("OTHER" in line for line in compared(a, a, allow_other_texts=True))


def test_reports_that_cannot_be_paired_are_refused_with_what_differs(tmp_path: Path) -> None:
    scores = {ROW: {"key": [1.0, 0.0, 1.0]}}
    a = write_report(tmp_path / "a", scores)
    twice = write_report(tmp_path / "twice", scores, keys=["key0"] * 3)
    for folder, allow, message in (
        (write_report(tmp_path / "k", scores, keys=["key0", "key1", "new"]), False, "new of test"),
        (write_report(tmp_path / "n", {ROW: {"key": [1.0]}}), True, "2 of its pieces missing"),
        (
            write_report(tmp_path / "w", scores, wanted=[Wanted(tempo_bpm=120.0, key=4)] * 3),
            False,
            "key 4, and 3",
        ),
        (
            write_report(tmp_path / "l", scores, wanted=[Wanted(key=3)] * 3),
            False,
            "tempo_bpm nothing",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            compared(a, folder, allow_other_texts=allow)
        said = str(refused.value)
        assert said.startswith(str(folder)) and str(a) in said and "allowed: the same" in said
    again = write_report(tmp_path / "x", scores, keys=["key0"] * 3, texts=["1", "2", "3"])
    with pytest.raises(ConfigError, match="found key0 of test, bars 0 to 8 3 times"):
        compared(twice, again, allow_other_texts=True)
    assert compared(twice, twice), "one piece under several texts is known by them"


def test_damaged_reports_and_halves_of_two_are_refused(tmp_path: Path) -> None:
    scores = {ROW: {"key": [1.0, 0.0, 1.0]}}
    with pytest.raises(ConfigError, match=r"control.json cannot be read .* --control"):
        read_report(tmp_path / "absent", "absent")
    for name, spoil in (
        ("short", lambda text: "".join(text.splitlines(keepends=True)[:-1])),
        ("mended", lambda text: text.replace('"key": 1.0', '"key": 0.0')),
        ("cut", lambda text: text[:-20]),
        ("list", lambda text: "[]\n" * 3),
        ("names", lambda text: text.replace('"name": ["test", ', '"name": [')),
        ("rows", lambda text: text.replace(ROW, "text, other")),
    ):
        folder = write_report(tmp_path / name, scores)
        path = folder / "pieces.jsonl"
        text = path.read_text()
        path.write_text(spoil(text))
        assert path.read_text() != text
        with pytest.raises(ConfigError, match="judge again") as refused:
            read_report(folder, name)
        assert str(refused.value).startswith(str(folder))


def test_a_text_may_hold_any_sign(tmp_path: Path) -> None:
    folder = write_report(tmp_path / "a", {ROW: {"key": [1.0]}}, texts=["a\u2028b\x85c|d\n"])
    assert len((folder / "pieces.jsonl").read_text().splitlines()) > 1
    assert [piece.text for piece in read_report(folder, "a").pieces] == ["a\u2028b\x85c|d\n"]


def test_reports_of_before_a_metric_was_thought_of_are_read(tmp_path: Path) -> None:
    scores = {ROW: {"key": [1.0] * 8, "length": [1.0] * 8}}
    old, new = (write_report(tmp_path / name, scores) for name in ("old", "new"))
    figures = json.loads((old / "control.json").read_text())
    pieces = [json.loads(line) for line in (old / "pieces.jsonl").read_text().splitlines()]
    figures["rows"][ROW]["scores"].pop("length")
    for of in (figures, *pieces):
        for name in ("variety", "bar_similarity", "bar_similarity_chance"):
            of.pop(name, None)
    for piece in pieces:
        piece["scores"][ROW].pop("length")
    (old / "control.json").write_text(json.dumps(figures))
    (old / "pieces.jsonl").write_text("\n".join(map(json.dumps, pieces)))
    lines = compared(old, new)
    assert cells(lines, "new", "old", "key") and not cells(lines, "new", "old", "length")
    (row,) = cells(lines, "old", "-")
    assert row[0] == "old" and row[1].startswith("100.0")


def test_how_bars_come_back_and_how_pieces_vary_is_shown_where_it_was_measured(
    tmp_path: Path,
) -> None:
    values, nan = [1.0] * 10, np.nan
    folders = [
        write_report(
            tmp_path / name,
            {ROW: {"key": values}, "shuffled, summaries": {"key": values}},
            similarity={"piece": 0.5, ROW: 0.5 - error, "shuffled, summaries": 0.0},
            variety={"piece": [0.9] * 8 + [nan, nan], ROW: [spread] * 8 + [nan, nan]},
        )
        for name, error, spread in (("a", 0.125, 0.75), ("b", 0.25, 0.5))
    ]
    lines = compared(*folders)
    similarity = lines[lines.index("## Bar similarity error") :]
    assert [row[:2] for row in cells(similarity, "0.0 [0.0, 0.0] n 10")] == [
        ["a", "12.5 [12.5, 12.5] n 10"],
        ["b", "25.0 [25.0, 25.0] n 10"],
    ]
    variety = lines[lines.index("## Variety of two pieces of one text") :]
    header, real = ["report", ROW, "two real pieces"], "90.0 [90.0, 90.0] n 8"
    assert cells(variety, "report")[0] == header
    assert cells(variety, real) == [
        ["a", "75.0 [75.0, 75.0] n 8", real],
        ["b", "50.0 [50.0, 50.0] n 8", real],
    ]
    assert cells(variety, "b", "a", ROW, "-25.0 in every piece, n 8", "lower")
    assert "shuffled" not in "".join(similarity) and lines[-1].endswith("a: nothing. b: nothing.")
