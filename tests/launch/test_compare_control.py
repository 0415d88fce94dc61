"""launch/tools/compare_control.py from folders to Markdown."""

from pathlib import Path

import pytest

from meloformer.command_line import run_recipe
from tests.evaluation.control_reports import write_report
from tests.launch.recipes import load_recipe

recipe = load_recipe("tools/compare_control.py")


@pytest.fixture
def reports(tmp_path: Path) -> list[str]:
    """Three folders: in the second more keys are right, the third has as many."""
    folders = []
    for name, right in (("replace", 4), ("blend-0.5", 20), ("adapter", 20)):
        rows = {
            f"{source}, summaries": {"key": [1.0] * right + [0.0] * (24 - right)}
            for source in ("text", "shuffled")
        }
        nats = {"none": [3.0] * 24, "text": [3.0 - right / 20] * 24}
        folders.append(str(write_report(tmp_path / name, rows, nats=nats)))
    return folders


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run_(*flags: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, recipe.CompareControlConfig, flags)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run_


def test_folders_become_tables_words_and_a_last_line(run, reports, tmp_path: Path) -> None:
    output = tmp_path / "verdict.md"
    output.write_text("before")
    code, said, complaint = run(*reports, "--output", str(output))
    assert (code, complaint) == (0, "")
    assert output.read_text() == said and not list(tmp_path.glob(".*"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    for name in ("blend-0.5", "adapter"):
        assert [name, "replace", "key", "ahead"] in [row[:3] + row[4:] for row in rows if row]
    assert "## text, summaries" in said and "## shuffled" not in said
    last = said.splitlines()[-1]
    assert last.endswith("replace: nothing. blend-0.5: nothing. adapter: nothing."), "a tie"
    assert "key (text, summaries)" in run(*reports[:2])[1].splitlines()[-1]


def test_rows_and_names_are_chosen(run, reports) -> None:
    flags = ("--row", "shuffled", "text", "--names", "R", "B", "learned")
    code, said, complaint = run(*reports, *flags)
    assert (code, complaint) == (0, "")
    assert said.index("## shuffled, summaries") < said.index("## text, summaries")
    assert "| learned " in said and "adapter" not in said and "replace" not in said


def test_bad_input_ends_in_one_line_and_code_2(run, reports, tmp_path: Path) -> None:
    other = str(write_report(tmp_path / "other", {"text, summaries": {"key": [1.0] * 3}}))
    texts = str(
        write_report(
            tmp_path / "texts", {"text, summaries": {"key": [1.0] * 24}}, texts=["zh"] * 24
        )
    )
    for flags, message in (
        (reports[:1], "found 1 report folders; allowed: 2"),
        ((), "found 0 report folders"),
        ((*reports, other), f"{other}: found 0 pieces that"),
        ((*reports, texts), "--allow_other_texts"),
        ((*reports, str(tmp_path)), "control.json cannot be read"),
        ((*reports, "--row", "true"), "--row true: found in no report"),
        ((*reports, "--row", "piece"), "piece"),
        ((*reports, "--names", "a", "b"), "--names: found 2 for 3 reports"),
        ((*reports, "--names", "a", "b", "a"), "'a': allowed: a word of its own"),
        ((*reports, "--names", "a", "b", "c|d"), "'c|d': allowed"),
        ((reports[0], reports[0]), "'replace': allowed"),
        ((*reports, "--output", f"{tmp_path}/absent/x.md"), "--output"),
        ((*reports, "--output", f"{reports[1]}/control.md"), "a file of a report"),
    ):
        code, said, complaint = run(*flags)
        assert (code, said) == (2, "") and complaint.count("\n") == 1, complaint
        assert message in complaint
    code, said, _ = run(reports[0], texts, "--allow_other_texts")
    assert code == 0 and "OTHER TEXTS: 24 of 24 pieces have another text in texts" in said
