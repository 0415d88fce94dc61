"""The bench of the training step on toy shapes: all candidates learn, and the claims follow."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from meloformer.benchmarks.train_bench import claimed
from meloformer.benchmarks.workload import Workload
from meloformer.command_line import run_recipe
from tests.launch.recipes import load_recipe


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("bench/train.py")


def test_the_recipe_trains_rules_and_twin_in_turns_and_writes_its_figures(
    recipe: ModuleType,
    chorale_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = tmp_path / "train.json"
    flags = (
        f"--device cpu --data {chorale_shards} --max_seq_len 256 --batch_size 1 --num_slices 1 "
        "--gradient_accumulation_steps 1 --steps_per_slice 1 --steady_steps 1 --against full "
        f"--json {figures}"
    )
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.bench_train, recipe.BenchTrainConfig, flags.split())
    assert ended.value.code == 0
    assert "rules as dense masks" in " ".join(capsys.readouterr().out.split())
    found = json.loads(figures.read_text())
    assert [row["name"].split(" (")[0] for row in found["rows"]] == ["halves", "full", "dense twin"]
    assert found["train_tokens"] == found["rows"][0]["tokens_per_second"] > 0
    assert found["graphs_beyond"] == 0 and 0 <= found["train_wait"] <= 100
    assert "train_mfu" not in found, "no data sheet, no MFU"
    by_name = {row["name"]: row for row in found["rows"]}
    # The same rows in the same order, from the same weights but for what a twin has not.
    assert by_name["halves"]["flops"] < by_name["full"]["flops"]


def row(**figures: Any) -> dict[str, Any]:
    return {
        "tokens_per_second": 1000.0,
        "data_wait": 0.01,
        "mfu": 0.4,
        "graphs": 3,
        "graphs_declared": 3,
    } | figures


def test_claims_are_those_of_the_first_candidate_in_the_units_of_the_claims() -> None:
    workload = Workload(pieces=3600, epochs=2, tokens_per_piece=1000)
    figures = claimed([row(), row(tokens_per_second=1.0)], workload)
    assert figures["train_tokens"] == 1000 and figures["train_wait"] == 1
    assert figures["train_mfu"] == 40 and figures["epochs_hours"] == 2


def test_a_graph_more_than_declared_counts_whichever_candidate_compiled_it() -> None:
    assert claimed([row(), row(graphs=5)], Workload())["graphs_beyond"] == 2
    assert claimed([row(), {"name": "twin", "why": "no memory"}], Workload())["graphs_beyond"] == 0


def test_a_candidate_that_could_not_run_claims_nothing() -> None:
    assert claimed([{"name": "halves", "why": "no memory"}, row()], Workload()) == {}
