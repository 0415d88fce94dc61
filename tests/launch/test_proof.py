"""launch/tools/proof.py: every claim has its row, and no row says more than was measured."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from launch.tools.proof import ProofConfig, prove, read_rows
from meloformer.benchmarks.claims import CLAIMS
from meloformer.benchmarks.proof import Claim, Command, Goal, Row, named, number_text
from meloformer.errors import ConfigError
from meloformer.training.cores import cores_at_hand

REPOSITORY = Path(__file__).resolve().parents[2]
PROOF = REPOSITORY / "PROOF.json"
CORPORA = REPOSITORY.parent / "shared" / "corpora"
TEN = Goal(">=", 10)


def command(
    name: str, figures: dict[str, Any] | None = None, then: str = "", **rest: Any
) -> Command:
    """Writes figures, then does something else."""
    write = f"echo '{json.dumps(figures)}' > {{figures}}" if figures is not None else "true"
    return Command(name=name, line=f"{write}{then}", **rest)


def claim(id: str, of: Command, goal: Goal = TEN, **rest: Any) -> Claim:
    settings = {"figure": named("rate"), "unit": "files/s", "readme": ""} | rest
    return Claim(id=id, claim=f"claim of {id}", command=of, goal=goal, **settings)


def proved(claims: list[Claim], folder: Path, *only: str, **flags: Any) -> dict[str, Row]:
    rows = prove(claims, ProofConfig(only=only, output=folder, **flags), root=folder)
    assert list(read_rows(folder).values()) == rows
    return {row.id: row for row in rows}


def test_verdicts_follow_from_figure_and_goal(tmp_path: Path) -> None:
    command_of_both = command("both", {"rate": 10, "share": 0.02})
    rows = proved(
        [
            claim("at", command_of_both),
            claim("below", command_of_both, Goal(">", 10)),
            claim("share", command_of_both, Goal("<", 0.1), figure=named("share")),
        ],
        tmp_path,
    )
    assert [row.verdict for row in rows.values()] == ["PASS", "MISS", "PASS"]
    assert rows["share"].measured == 0.02


def test_a_command_of_several_rows_is_run_once(tmp_path: Path) -> None:
    once = command("once", {"rate": 12}, then=" && echo ran >> runs.txt")
    rows = proved([claim("one", once), claim("two", once)], tmp_path)
    assert (tmp_path / "runs.txt").read_text().split() == ["ran"]
    assert [row.measured for row in rows.values()] == [12, 12]


def test_only_reruns_one_row_and_keeps_the_others_as_they_were(tmp_path: Path) -> None:
    claims = [claim("a", command("a", {"rate": 11})), claim("b", command("b", {"rate": 1}))]
    first = proved(claims, tmp_path)
    (tmp_path / "build/proof/a.json").unlink()
    text = (tmp_path / "PROOF.json").read_text().replace(first["a"].date, "2001-02-03")
    (tmp_path / "PROOF.json").write_text(text)
    second = proved(claims, tmp_path, "b")
    assert second["a"] == replace(first["a"], date="2001-02-03")
    assert second["b"].date >= first["b"].date  # the day may end meanwhile
    assert not (tmp_path / "build/proof/a.json").exists()


def test_only_keeps_why_another_row_failed(tmp_path: Path) -> None:
    claims = [claim("a", Command(name="a", line="echo no such flag; exit 2"))]
    claims.append(claim("b", command("b", {"rate": 1})))
    first = proved(claims, tmp_path)
    assert "no such flag" in first["a"].why
    assert proved(claims, tmp_path, "b")["a"] == first["a"]


def test_a_kept_row_is_judged_by_the_goal_of_today(tmp_path: Path) -> None:
    a, b = claim("a", command("a", {"rate": 11})), claim("b", command("b", {"rate": 1}))
    assert proved([a, b], tmp_path)["a"].verdict == "PASS"
    stricter = proved([replace(a, goal=Goal(">=", 12)), b], tmp_path, "b")["a"]
    assert (stricter.verdict, stricter.goal, stricter.measured) == ("MISS", ">= 12", 11)


def test_a_row_whose_command_has_changed_is_not_kept(tmp_path: Path) -> None:
    b = claim("b", command("b", {"rate": 1}))
    proved([claim("a", command("a", {"rate": 11})), b], tmp_path)
    changed = proved([claim("a", command("a", {"rate": 99})), b], tmp_path, "b")["a"]
    assert (changed.verdict, changed.measured) == ("NOT RUN", None)
    assert "another way" in changed.why


@pytest.mark.parametrize(
    ("failing", "verdict", "why"),
    [
        (Command(name="c", line="echo so far; echo error: no such file >&2; exit 2"), "NOT RUN",
         "status 2: error: no such file"),
        (Command(name="c", line="echo out of memory; exit 1"), "MISS", "status 1: out of memory"),
        (Command(name="c", line="no_such_program_here"), "NOT RUN", "status 127"),
        (Command(name="c", line="kill -9 $$"), "MISS", "it said nothing"),
        (Command(name="c", line="echo 1 failed; exit 2", is_promise=True), "MISS", "1 failed"),
        (Command(name="c", line="true", prepare="echo bad; exit 1"), "NOT RUN", "status 1: bad"),
        (Command(name="c", line="true # {figures}"), "NOT RUN", "wrote no figures"),
        (Command(name="c", line="echo '[1]' > {figures}"), "NOT RUN", "no JSON object"),
        (Command(name="c", line="echo half > {figures}"), "NOT RUN", "no JSON object"),
        (command("c", {"other": 1}), "NOT RUN", "KeyError 'rate'"),
        (command("c", {"rate": None}), "NOT RUN", "TypeError"),
        (command("c", {"rate": float("nan")}), "MISS", "nan"),
        (command("c", {"rate": 20}, prepare=": > {figures}"), "PASS", ""),
    ],
)  # fmt: skip
def test_a_command_that_fails_is_a_row_that_says_so(
    tmp_path: Path, failing: Command, verdict: str, why: str
) -> None:
    row = proved([claim("row", failing)], tmp_path)["row"]
    assert row.verdict == verdict
    assert why in row.why
    assert "\n" not in row.why
    assert (row.measured is None) == (verdict != "PASS")


def test_figures_of_an_earlier_run_are_never_taken_for_those_of_a_failed_one(
    tmp_path: Path,
) -> None:
    proved([claim("row", command("c", {"rate": 20}))], tmp_path)
    failing = Command(name="c", line="exit 1")
    assert proved([claim("row", failing)], tmp_path)["row"].measured is None


def test_no_row_holds_a_path_of_this_machine(tmp_path: Path) -> None:
    line = 'echo "$PWD/data/x.mid: damaged, see https://example.org/a/b"; exit 1'
    row = proved([claim("row", Command(name="c", line=line))], tmp_path)["row"]
    assert row.why.endswith("x.mid: damaged, see https://example.org/a/b")
    for name in ("PROOF.json", "PROOF.md"):
        assert str(tmp_path) not in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("waiting", "why"),
    [
        (Command(name="c", line="python launch/bench/to_come.py"), "not built yet"),
        (Command(name="c", line="true", needs=("corpora",)), "../shared/corpora is missing"),
        (Command(name="c", line="true", needs=("runs/none",)), "runs/none is missing"),
        (Command(name="c", line="true", needs=("no_such_package",)), "no_such_package is missing"),
        (Command(name="c", line="exit 3", is_long=True), "takes long"),
    ],
)
def test_what_cannot_run_here_says_why_and_is_no_miss(
    tmp_path: Path, waiting: Command, why: str
) -> None:
    folder = tmp_path / "alone" / "repository"
    folder.mkdir(parents=True)
    row = proved([claim("row", waiting)], folder)["row"]
    assert (row.verdict, row.measured) == ("NOT RUN", None)
    assert why in row.why


def test_long_rows_run_when_asked_for_and_stay_afterwards(tmp_path: Path) -> None:
    long = claim("long", command("long", {"rate": 30}, is_long=True))
    assert proved([long], tmp_path)["long"].verdict == "NOT RUN"
    assert proved([long], tmp_path, all=True)["long"].verdict == "PASS"
    assert proved([long], tmp_path)["long"].verdict == "PASS"
    (tmp_path / "PROOF.json").unlink()
    assert proved([long], tmp_path, "long")["long"].verdict == "PASS"


def test_a_row_that_another_machine_measured_is_kept(tmp_path: Path) -> None:
    here = claim("row", command("c", {"rate": 30}))
    found = proved([here], tmp_path)
    elsewhere = replace(here, command=replace(here.command, needs=("no_such_package",)))
    assert proved([elsewhere], tmp_path) == found
    assert proved([elsewhere], tmp_path, "row") == found


def test_an_unknown_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no_such_row.*--list"):
        proved([claim("row", command("c", {"rate": 1}))], tmp_path, "no_such_row")


def test_a_proof_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "PROOF.json").write_text('{"rows": [{"id": "row"}]}')
    with pytest.raises(ConfigError, match=r"PROOF\.json.*delete it"):
        proved([claim("row", command("c", {"rate": 1}))], tmp_path)


def test_the_tables_show_every_row_on_a_line(tmp_path: Path) -> None:
    claims = [claim("a", command("a", {"rate": 12_345})), claim("b", Command(name="b", line="a|b"))]
    proved(claims, tmp_path)
    text = (tmp_path / "PROOF.md").read_text()
    assert "| a | claim of a | 12,345 | >= 10 | files/s | PASS |" in text
    assert "a\\|b" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line[:1] == "|"}
    assert widths == {8, 7}


def test_words_of_readme_are_written_with_the_figure(tmp_path: Path) -> None:
    tagged = claim("a", command("a", {"rate": 512.3}), readme="{measured:,.0f} files per second")
    assert proved([tagged], tmp_path)["a"].readme == "512 files per second"


def test_the_list_names_every_claim_once() -> None:
    script = REPOSITORY / "launch/tools/proof.py"
    listed = subprocess.run(
        [sys.executable, str(script), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed == [claim.id for claim in CLAIMS]
    assert len(set(listed)) == len(listed)


def test_commands_of_one_name_are_one_command() -> None:
    commands = {claim.command.name: claim.command for claim in CLAIMS}
    assert all(commands[claim.command.name] == claim.command for claim in CLAIMS)


# What each recipe wrote in a small run.
FIGURES = {
    "data": {
        "rates": [
            {"what": what, "num_workers": number, "files_per_second_and_core": rate}
            for what, number, rate in (
                ("shard-data", 1, 600.0),
                ("MidiTok REMI", 1, 50.0),
                ("shard-data", 2, 540.0),
                ("MidiTok REMI", 2, 40.0),
            )
        ]
    },
    "memory": {"memory": {"10000": {"megabytes": 80.0}, "1000000": {"megabytes": 300.0}}},
    "stream": {
        "stream": [
            {
                "data": data,
                "mode": mode,
                "tokens per second": 2_000_000 + offset,
                "with halves plans": 400_000 + offset,
                "padding as computed, %": padding,
            }
            for mode in ("bucket", "pack")
            for data, offset, padding in (("a", 0, 1.5), ("b", 7, 0.25), ("tiny", 9, None))
        ]
    },
    "resume": {
        "plan": [
            {"pieces": pieces, "mode": mode, "first batch, s": seconds}
            for pieces, mode, seconds in (
                (10_000, "bucket", 9.0),
                (1_000_000, "bucket", 0.8),
                (1_000_000, "pack", 1.2),
            )
        ]
    },
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("files-per-second", 540),
        ("files-growth", 1.8),
        ("files-against-miditok", 12),
        ("build-memory", 220),
        ("stream-tokens", 2_000_000),
        ("stream-tokens-plans", 400_000),
        ("padding-bucket", 1.5),
        ("padding-pack", 1.5),
        ("first-batch", 1.2),
    ],
)
def test_a_figure_is_that_of_the_worst_case(name: str, expected: float) -> None:
    chosen = next(claim for claim in CLAIMS if claim.id == name)
    measured, note = chosen.figure(FIGURES[chosen.command.name])
    assert measured == pytest.approx(expected)
    assert note


def check_figures_of(command: str, recipe: str, *flags: object, folder: Path) -> None:
    """The names in the JSON of a recipe are those that the claims ask for."""
    figures = folder / "figures.json"
    words = [sys.executable, str(REPOSITORY / recipe), *map(str, flags), "--json", str(figures)]
    outcome = subprocess.run(words, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    asking = [claim for claim in CLAIMS if claim.command.name == command]
    assert asking
    for claim in asking:
        assert recipe in claim.command.line
        measured, note = claim.figure(json.loads(figures.read_text()))
        assert measured >= 0
        assert note


def test_the_claims_on_the_stream_are_read_from_what_its_bench_writes(
    tmp_path: Path, chorale_shards: Path
) -> None:
    sizes = ("--seq_len", 512, "--global_batch", 2, "--batch_size", 2, "--num_batches", 2)
    check_figures_of(
        "stream", "launch/bench/stream.py", "--data", chorale_shards, *sizes, folder=tmp_path
    )


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.is_dir(), reason="../shared/corpora is missing")
@pytest.mark.parametrize(
    ("command", "recipe", "corpus", "flags"),
    [
        pytest.param(
            "data",
            "launch/bench/data.py",
            "js_fakes",
            ("--against", "miditok"),
            # Two workers on one core end no sooner than their start-up, which the bench refuses.
            marks=pytest.mark.skipif(
                cores_at_hand() < 2, reason="needs two cores to hold two workers against one"
            ),
        ),
        ("near-copies", "launch/tools/near_copies_table.py", "openmsx", ("--pieces", "5")),
    ],
)
def test_the_claims_on_data_are_read_from_what_their_recipes_write(
    tmp_path: Path, command: str, recipe: str, corpus: str, flags: tuple[str, ...]
) -> None:
    midi = CORPORA / f"{corpus}.tar.gz"
    check_figures_of(command, recipe, "--midi", midi, *flags, folder=tmp_path)


def test_the_claim_on_writing_is_read_from_what_its_recipe_writes(tmp_path: Path) -> None:
    flags = ("--model_size", "tiny", "--batch_sizes", 1, "--max_tokens", 8, "--rounds", 1)
    check_figures_of(
        "generate-cpu", "launch/bench/generate.py", "--device", "cpu", *flags, folder=tmp_path
    )


# The proof as it is committed.


@pytest.fixture
def committed() -> list[dict[str, Any]]:
    if not PROOF.is_file():
        pytest.skip("PROOF.json is not written yet: `make proof`")
    return json.loads(PROOF.read_text())["rows"]


def test_the_committed_proof_has_a_whole_row_for_every_claim(
    committed: list[dict[str, Any]],
) -> None:
    assert [row["id"] for row in committed] == [claim.id for claim in CLAIMS]
    for row in committed:
        assert list(row) == [field.name for field in fields(Row)]
        may_be_empty = {"measured", "prepare", "why", "readme", "unit"}
        assert all(value != "" for name, value in row.items() if name not in may_be_empty), row
        assert row["why"] or row["measured"] is not None, row


def test_committed_verdicts_follow_from_figure_and_goal(committed: list[dict[str, Any]]) -> None:
    for row, claim in zip(committed, CLAIMS, strict=True):
        assert row["goal"] == f"{claim.goal.comparison} {number_text(claim.goal.number)}"
        if row["measured"] is not None:
            expected = "PASS" if claim.goal.is_met(row["measured"]) else "MISS"
            assert row["verdict"] == expected, row


def test_readme_holds_the_words_that_the_proof_gives_it(committed: list[dict[str, Any]]) -> None:
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    for row, claim in zip(committed, CLAIMS, strict=True):
        if row["measured"] is not None:
            words = claim.readme.format(measured=row["measured"], goal=claim.goal.number)
            assert row["readme"] == words
            assert words in readme, row
            # Words that name the goal alone promise that it is met.
            assert not words or "{measured" in claim.readme or row["verdict"] == "PASS", row


def test_the_committed_proof_names_no_path_of_a_machine() -> None:
    for name in ("PROOF.json", "PROOF.md"):
        if (REPOSITORY / name).is_file():
            text = (REPOSITORY / name).read_text()
            assert not re.search(r"(?<![\w.:/$}])/(home|root|tmp|work|Users|usr)/", text), name
