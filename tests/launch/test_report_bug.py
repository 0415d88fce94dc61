import zipfile
from pathlib import Path

import pytest

from meloformer.command_line import run_recipe
from tests.launch.recipes import load_recipe

recipe = load_recipe("tools/report_bug.py")


@pytest.fixture
def start(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit code, stdout and stderr of a report on a run that has a log and no more."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text("ended on moonshot, node17\n")

    def start_(*flags: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, recipe.ReportBugConfig, ["--flex", "off", *flags])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return start_


def test_a_report_is_written_listed_and_without_the_words_named(start, tmp_path: Path) -> None:
    flags = ("--run", str(tmp_path / "run"), "--output", str(tmp_path / "report.zip"))
    code, said, complaint = start(*flags, "--hide", "moonshot", "--hide", "node17")
    assert (code, complaint) == (0, "")
    with zipfile.ZipFile(tmp_path / "report.zip") as report:
        assert report.read("train.log").decode() == "ended on <secret>, <secret>\n"
        assert all(f"  {name} " in said for name in report.namelist())
    before = (tmp_path / "report.zip").read_bytes()
    code, _, complaint = start(*flags)
    assert code == 2 and complaint.count("\n") == 1 and "a name that is free" in complaint
    assert (tmp_path / "report.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--run", "absent"], "found none of run.json"),
        (["--run", "absent", "--output", "absent/x.zip"], "its folder does not exist"),
        (["--run", "absent", "--num_lines", "0"], "--num_lines 0: allowed: 1 or more"),
    ],
)
def test_bad_input_exits_with_2_in_one_line_and_writes_nothing(
    start, flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, complaint = start(*flags)
    assert code == 2 and complaint.count("\n") == 1 and words in complaint
    assert list(tmp_path.glob("*.zip")) == []
