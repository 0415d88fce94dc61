import json
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from meloformer.benchmarks.memory_table import MemoryRow
from meloformer.benchmarks.memory_trial import Trial, longest_that_fits, run_trial
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.cards import CARDS
from tests.launch.recipes import load_recipe


@pytest.fixture
def run(capsys):
    """Exit code, stdout and stderr of a tool."""

    def run_(name: str, *flags: str):
        recipe = load_recipe(f"tools/{name}.py")
        config = recipe.MemoryProfileConfig if name == "memory_profile" else recipe.MaxSeqlenConfig
        with pytest.raises(SystemExit) as ended:
            run_recipe(getattr(recipe, name), config, list(flags))
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run_


def test_a_profile_has_a_line_for_every_size_length_and_batch_and_says_what_is_modelled(
    run,
) -> None:
    grid = "--sizes tiny small --lengths 512 8192 --batches 1 3 --measure off".split()  # noqa: SIM905
    code, said, _ = run("memory_profile", *grid, "--json")
    rows = json.loads(said)["rows"]
    assert code == 0 and len(rows) == 8
    for row in rows:
        assert row["predicted"] == row["states"] + row["activations"]
        assert row["measured"] is None and "predicted" in row["modelled"]
        assert row["largest_batch"].keys() == {card.name for card in CARDS}
    code, said, _ = run("memory_profile", *grid)
    assert code == 0 and "every figure is modelled" in said


@pytest.mark.parametrize(
    ("tool", "flags", "found"),
    [
        ("memory_profile", "--lengths 0", "--lengths"),
        ("memory_profile", "--lengths 512 8", "--lengths 512 8: allowed: 16"),
        ("memory_profile", "--sizes", "--sizes: found none"),
        ("memory_profile", "--ranks 0", "--ranks 0"),
        ("max_seqlen", "--device cpu", "--memory_gib was not given"),
        ("max_seqlen", "--rows 0", "--rows 0"),
        ("max_seqlen", "--device cpu --memory_gib nan", "--memory_gib nan"),
        ("max_seqlen", "--device cpu --memory_gib inf", "--memory_gib inf"),
        ("max_seqlen", "--device cpu --memory_gib 0", "--memory_gib 0"),
        ("max_seqlen", "--device cpu --memory_gib 8 --most_tokens 100", "--most_tokens 100"),
    ],
)
def test_impossible_flags_are_refused_in_one_line(run, tool: str, flags: str, found: str) -> None:
    code, _, complaint = run(tool, *flags.split())
    assert code == 2 and found in complaint and complaint.count("\n") == 1


def test_more_memory_holds_longer_rows_by_formula(run) -> None:
    found = []
    for memory_gib in ("24", "80"):
        flags = ("--device", "cpu", "--memory_gib", memory_gib, "--json")
        code, said, _ = run("max_seqlen", *flags)
        assert code == 0
        found.append(json.loads(said))
    assert 0 < found[0]["predicted_tokens"] < found[1]["predicted_tokens"]
    assert {item["measured_tokens"] for item in found} == {None}


@pytest.mark.parametrize("longest", [0, 512, 3000, 65536, 100_000])
@pytest.mark.parametrize("guess", [0, 1024, 65536, 10**6])
def test_bisection_finds_the_edge_from_any_guess(longest: int, guess: int) -> None:
    found = longest_that_fits(lambda tokens: tokens <= longest, 512, guess, most=65536)
    assert found == min(longest // 512 * 512, 65536)


@pytest.mark.slow  # every try starts a process that loads the whole engine
def test_trying_under_a_limit_finds_about_the_length_that_the_formula_predicts(run) -> None:
    limit = ("--device", "cpu", "--model_size", "tiny", "--memory_gib", "0.4", "--try_here")
    code, said, _ = run("max_seqlen", *limit, "--most_tokens", "4096", "--json")
    found = json.loads(said)
    assert code == 0 and found["num_tries"] > 1
    assert 0.5 <= found["measured_tokens"] / found["predicted_tokens"] <= 2
    assert found["predicted_bytes"] == pytest.approx(found["peak_bytes"], rel=0.35)
    assert found["peak_bytes"] < found["limit_bytes"]


def trial(limit_bytes: int, stage: int = 2) -> Trial:
    return Trial(
        model_size="tiny",
        attention="halves",
        attention_precision="bf16",
        checkpointing="none",
        rows=1,
        tokens=512,
        device="cpu",
        limit_bytes=limit_bytes,
        stage=stage,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("ended_by", "limit_bytes", "is_for_memory"),
    [
        (signal.SIGKILL, 0, True),
        (signal.SIGABRT, 1 << 28, True),
        (signal.SIGSEGV, 0, False),
        (signal.SIGABRT, 0, False),
    ],
)
def test_a_crash_is_no_lack_of_memory(
    ended_by: signal.Signals, limit_bytes: int, is_for_memory: bool, monkeypatch
) -> None:
    ends = f"#!/bin/sh\nkill -{int(ended_by)} $$\n"
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "python"
        python.write_text(ends)
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        if is_for_memory:
            assert not run_trial(trial(limit_bytes)).fits
        else:
            with pytest.raises(ConfigError, match=f"status -{int(ended_by)}"):
                run_trial(trial(limit_bytes))


def row_of(measured: int | None) -> MemoryRow:
    return MemoryRow(
        model_size="tiny",
        tokens=512,
        rows=1,
        states=1,
        activations=1,
        predicted=2,
        measured=measured,
        largest_batch={},
    )


def test_what_did_not_fit_is_no_peak_of_zero() -> None:
    words = load_recipe("tools/memory_profile.py").measured_words
    found = [words(row_of(measured)) for measured in (None, 0, 1 << 30)]
    assert found == ["-", "does not fit", "1.00"]


@pytest.mark.slow  # processes that load the whole engine
@pytest.mark.parametrize("stage", [1, 3])
def test_every_stage_can_be_tried(stage: int) -> None:
    assert run_trial(trial(0, stage)).fits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_one(run) -> None:
    for mode in ("none", "ffn", "layer"):
        grid = ["--sizes", "small", "--lengths", "8192", "--batches", "1", "6"]
        _, said, _ = run("memory_profile", *grid, "--checkpointing", mode, "--json")
        for row in json.loads(said)["rows"]:
            assert row["predicted"] == pytest.approx(row["measured"], rel=0.1), row
