"""Time of a step's traffic, and the recipe that measures ranks and predicts more of them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.scaling_model import (
    LinkConfig,
    RankWork,
    collective_seconds,
    predict,
)
from meloformer.benchmarks.scaling_runs import (
    RunSettings,
    check_counts,
    measure_ranks,
    rank_counts,
)
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.traffic import Collective
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "launch/bench/scaling.py")
LINKS = LinkConfig()
BIG = Collective(
    operation="all_reduce", elements=10**9, element_bytes=2, calls=1, purpose="gradients"
)
NUMBER = replace(BIG, elements=1)


def zero(stage: int) -> dict:
    return json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text())


def work(accumulation: int = 8) -> RankWork:
    return RankWork(
        size="base",
        config=sized_config("base", 8192),
        tokens=6 * 8192,
        accumulation=accumulation,
        tokens_per_second=300_000.0,
    )


def test_a_large_message_takes_its_bytes_over_the_bandwidth_of_the_slowest_link() -> None:
    in_node = 2 * (7 / 8) * 2e9 / 370e9
    assert collective_seconds(BIG, 8, LINKS) == pytest.approx(in_node, rel=0.01)
    across = 2 * (15 / 16) * 2e9 / 20e9
    slow = replace(LINKS, network_gb_s=20.0)
    assert collective_seconds(BIG, 16, slow) == pytest.approx(across, rel=0.01)


def test_a_single_number_takes_only_latency_and_longer_between_nodes() -> None:
    fast = replace(LINKS, node_gb_s=1e9, network_gb_s=1e9)
    for world_size in (2, 8, 64):
        alone = collective_seconds(NUMBER, world_size, fast)
        assert collective_seconds(NUMBER, world_size, LINKS) == pytest.approx(alone, rel=0.01)
    assert 0 < collective_seconds(NUMBER, 8, LINKS) < collective_seconds(NUMBER, 16, LINKS) < 1e-3


def test_many_small_messages_take_longer_than_one_of_their_size() -> None:
    cut = replace(BIG, elements=10**6, calls=1000)
    assert collective_seconds(cut, 8, LINKS) > 5 * collective_seconds(
        replace(cut, calls=1), 8, LINKS
    )


def test_one_rank_exchanges_nothing_and_loses_nothing() -> None:
    row = predict(work(), zero(2), 1, LINKS)
    assert row["sent_bytes"] == row["exchange_seconds"] == row["exchange_share"] == 0
    assert row["efficiency"] == 1 and row["tokens_per_second"] == pytest.approx(300_000)


def test_the_share_of_stage_1_falls_with_accumulation_and_that_of_stage_2_does_not() -> None:
    def share(stage: int, accumulation: int) -> float:
        return predict(work(accumulation), zero(stage), 64, LINKS)["exchange_share"]

    assert share(1, 8) < share(1, 1) / 4
    assert share(2, 8) > share(2, 1) / 2
    assert share(1, 8) < share(2, 8)


def test_efficiency_falls_as_ranks_are_added_and_with_a_slower_network() -> None:
    found = [predict(work(), zero(3), ranks, LINKS)["efficiency"] for ranks in (8, 16, 32, 64)]
    assert found == sorted(found, reverse=True)
    slow = predict(work(), zero(3), 64, replace(LINKS, network_gb_s=1.0))
    assert slow["efficiency"] < found[-1] / 2


def test_ranks_double_up_to_all_and_more_than_there_are_gpus_is_refused() -> None:
    assert rank_counts(6) == (1, 2, 4, 6)
    with pytest.raises(ConfigError, match="--ranks 4: allowed: 1 or more, up to the 2 GPU"):
        check_counts((1, 4), 2, "cuda")
    check_counts((1, 4), 0, "cpu")


@pytest.mark.parametrize(
    "flags",
    [
        *("--node_gb_s nan", "--network_gb_s inf", "--steps 0", "--max_seq_len 0"),
        *("--tokens_per_second nan", "--json absent/s.json", "--card H900"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("bench/scaling.py")
    given = ["--measure", "off", "--sizes", "tiny", "--seq_len", "256", *flags.split()]
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.bench_scaling, recipe.BenchScalingConfig, given)
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "allowed" in said.err


@pytest.mark.slow  # two ranks have to load torch before they can be stopped
@pytest.mark.distributed
def test_ranks_that_are_stopped_leave_nothing_running(tmp_path: Path) -> None:
    recipe = tmp_path / "sleeps.py"
    recipe.write_text(
        "import os, pathlib, time\n"
        f"pid = pathlib.Path({str(tmp_path)!r}, 'pid' + os.environ['RANK'])\n"
        "pid.write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    settings = RunSettings(
        recipe=recipe,
        data="",
        size="tiny",
        max_seq_len=128,
        batch_size=1,
        accumulation=1,
        config=ROOT / "ds_configs/zero2.json",
        device="cpu",
        num_steps=2,
    )
    (row,) = measure_ranks(settings, (2,), limit_seconds=20)
    assert row["why"] == "stopped after 20 s" and "tokens_per_second" not in row
    pids = [path.read_text() for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    for pid in pids:
        status = Path("/proc") / pid / "status"
        assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_recipe_measures_two_ranks_and_marks_what_is_modelled(
    chorale_shards: Path, tmp_path: Path
) -> None:
    flags = "--ranks 1 2 --device cpu --steps 4 --max_seq_len 128 --seq_len 1024 --sizes tiny"
    command = [sys.executable, RECIPE, "--data", str(chorale_shards), *flags.split()]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "s.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / "s.json").read_text())
    assert [row["ranks"] for row in figures["measured"]] == [1, 2]
    assert all(row["tokens_per_second"] > 0 for row in figures["measured"]), figures["measured"]
    assert figures["measured"][0]["efficiency"] == 1
    assert {row["kind"] for row in figures["measured"]} == {"measured"}
    assert {row["kind"] for row in figures["modelled"]} == {"modelled"}
    assert {(row["stage"], row["ranks"]) for row in figures["modelled"]} == {
        (stage, ranks) for stage in (1, 2, 3) for ranks in (8, 16, 32, 64)
    }
