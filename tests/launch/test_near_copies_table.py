"""launch/tools/near_copies_table.py: what a stranger reads in its tables."""

import json
from pathlib import Path

import pytest

from launch.tools.near_copies_table import (
    ONE_TUNE,
    NearCopiesTableConfig,
    clusters_table,
    found_table,
    near_copies_table,
)
from meloformer.errors import ConfigError
from meloformer.evaluation.piece_edits import EDITS
from meloformer.midi.default_corpus import chorale_paths, score_to_midi


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    """Two folders of chorales; in the second a copy, and a file that is none."""
    chorales = [score_to_midi(path) for path in chorale_paths()[:6]]
    for name, part in (("one", chorales[:3]), ("two", chorales[3:6])):
        (tmp_path / name).mkdir()
        for number, data in enumerate(part):
            (tmp_path / name / f"{number}.mid").write_bytes(data)
    (tmp_path / "two" / "again.mid").write_bytes(chorales[3])
    (tmp_path / "two" / "broken.mid").write_bytes(b"MThd")
    return [tmp_path / "one", tmp_path / "two"]


def test_every_kind_of_edit_is_a_row_with_how_many_were_edited_and_found(
    corpora: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    config = NearCopiesTableConfig(
        midi=tuple(map(str, corpora)), pieces=2, random_pairs=2, json=figures
    )
    assert near_copies_table(config) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    found = json.loads(figures.read_text())["found"]
    assert list(found) == ["one", "two"]
    for name, edits in found.items():
        for place, (edit, cell) in enumerate(edits.items()):
            share = f"{100 * cell['found'] / cell['copies']:.1f}"
            corpus = "" if place else name
            assert [corpus, edit, str(cell["copies"]), str(cell["found"]), share] in rows
    every = sum(edits["transposed"]["copies"] for edits in found.values())
    assert any(row[:3] == ["all", "transposed", str(every)] for row in rows if row)
    assert "in one cluster with the piece that it was made" in " ".join(shown.split())


def test_files_that_became_no_piece_are_counted(
    corpora: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = NearCopiesTableConfig(midi=(str(corpora[1]),), pieces=1, random_pairs=0)
    near_copies_table(config)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(row[1:6:2] == ["two", "5", "3"] for row in rows)


def test_headings_name_what_is_counted_and_in_what_unit() -> None:
    found = {"corpus [a]": {edit: {"found": 9, "copies": 10} for edit in EDITS}}
    heads = [str(column.header) for column in found_table(found, 0.25).columns]
    assert heads == ["corpus", "kind of edit", "pieces edited", "found", "found, %"]
    row = dict.fromkeys(("files", "pieces", "share_a_cluster", "one_tune", "other_tune"), 4)
    table = clusters_table({"a": row | {"largest": 2, "random_pairs_alike": None}})
    assert "with another tune, %" in [str(column.header) for column in table.columns]
    assert f"{ONE_TUNE:.0%}" in str(table.caption)


@pytest.mark.parametrize(
    "wrong", [{"pieces": 0}, {"random_pairs": -1}, {"near_copy_threshold": 0.0}]
)
def test_a_setting_that_measures_nothing_is_refused(wrong: dict[str, float]) -> None:
    [name] = wrong
    with pytest.raises(ConfigError, match=f"--{name} .*: allowed"):
        NearCopiesTableConfig(**wrong)  # type: ignore[arg-type]
