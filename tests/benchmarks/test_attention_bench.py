"""The attention bench on toy shapes: every figure can be recomputed, none is made up."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.benchmarks.alternation import Failure, Timing
from meloformer.benchmarks.attention_bench import (
    Bench,
    claimed,
    fastest_dense,
    figures_of,
    in_order,
    works_of,
)
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import find_rows
from meloformer.command_line import run_recipe
from meloformer.model import masks
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.dense_masks import labels_of
from meloformer.model.masks import Label, rule_of, summary_reads, token_reads
from meloformer.training.work import pair_rate
from tests.launch.recipes import load_recipe

LENGTH = 256


def timing(*seconds: float) -> Timing:
    return Timing(seconds=seconds, first_seconds=0.0, memory=None, graphs=0)


def bench_of(*rules: str) -> Bench:
    return Bench(
        config=sized_config("tiny", LENGTH),
        rules={name: rule_of(name) for name in rules},
        device=torch.device("cpu"),
        dtype=torch.float32,
        rounds=1,
    )


def test_operations_of_attention_are_those_of_the_pairs_that_the_rule_allows() -> None:
    bench, rows = bench_of("full"), find_rows(None, "one_piece", LENGTH, num_rows=1)
    layout = rows.batch(None).layout
    tokens, summaries = labels_of(layout)
    keys = Label(*(torch.cat(pair, dim=1) for pair in zip(summaries, tokens, strict=True)))

    def count(reads, queries: Label) -> int:
        q = Label(*(field[0][:, None] for field in queries))
        k = Label(*(field[0][None, :] for field in keys))
        is_query = (queries.piece[0] >= 0)[:, None]
        return int((reads(q, k) & is_query).sum())

    group = masks.RULES["full"][0]
    update = count(lambda q, k: token_reads(group, q, k), tokens)
    pairs = update + count(summary_reads, summaries)
    works = works_of(bench, rows, "attention")
    width = bench.config.width
    assert works["full"].flops == pytest.approx(3 * 4 * width * pairs, rel=1e-6)
    assert works["dense"].flops == 3 * 4 * width * LENGTH * (LENGTH + 1) / 2
    assert works["full"].density == pytest.approx(update / (LENGTH * (LENGTH + 1) / 2))


def test_the_model_level_counts_the_open_summaries_of_its_rows() -> None:
    bench, rows = bench_of("full"), find_rows(None, "one_piece", LENGTH, 2)
    closed = replace(bench, config=replace(bench.config, open_summary_rate=0.0))
    counted, without = (works_of(one, rows, "model") for one in (bench, closed))
    num_open = int((rows.batch(None, open_rate=0.3).layout.open_BS >= 0).sum())
    opened = pair_rate(rows.batch(None).layout, rule_of("full")).opened * num_open
    nothing = StepPairs(update=0, summarize=0, opened=opened)
    expected = training_flops(bench.config, 0, 0, nothing, num_open)
    assert expected > 0
    assert counted["full"].flops - without["full"].flops == pytest.approx(expected)
    assert counted["dense"].flops == without["dense"].flops


def test_mfu_is_the_floor_over_the_median_and_none_without_a_data_sheet() -> None:
    work = works_of(bench_of("full"), find_rows(None, "one_piece", LENGTH, 1), "attention")["full"]
    figures = figures_of(timing(1.0, 3.0, 2.0), work, work.flops, num_tokens=LENGTH)
    assert figures["floor_ms"] == 1000 and figures["mfu"] == 0.5
    assert figures["tokens_per_second"] == LENGTH / 2
    assert figures_of(timing(1.0), work, None, LENGTH)["mfu"] is None


def test_the_fastest_dense_kernel_is_the_yardstick_and_no_rule_can_be_it() -> None:
    found = {
        "dense flash": timing(2.0),
        "dense cuDNN": timing(1.5),
        "dense FA3": Failure("not installed"),
        "full": timing(1.0),
    }
    assert fastest_dense(found) == "dense cuDNN"
    assert fastest_dense({"full": timing(1.0)}) is None


def test_claims_take_the_speed_up_of_the_model_and_the_memory_of_attention() -> None:
    def row(level: str, tokens: int, memory: int, speedup: float) -> dict:
        return {
            "level": level,
            "tokens": tokens,
            "name": "halves",
            "kernel": "flex",
            "memory": memory,
            "speedup": speedup,
        }

    found = [row("attention", 8192, 10, 9.0), row("attention", 32768, 39, 9.0)]
    found += [row("model", 8192, 99, 1.5), {"level": "model", "tokens": 8192, "kernel": "causal"}]
    assert claimed(found) == {"attention_halves_8k": 1.5, "attention_memory": 3.9}


def test_an_order_is_that_of_all_groups() -> None:
    rule = in_order(rule_of("halves"), "bar")
    assert {group.order for group in rule} == {"bar"}
    assert in_order(rule, None) is rule


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("bench/attention.py")


def test_the_recipe_measures_every_rule_and_writes_its_figures(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "attention.json"
    flags = f"--device cpu --lengths {LENGTH} --rules halves full --layout one_piece --rounds 1 "
    with pytest.raises(SystemExit) as ended:
        run_recipe(
            recipe.bench_attention,
            recipe.BenchAttentionConfig,
            [*flags.split(), "--json", str(figures)],
        )
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rules as dense masks" in said and "made up" in said
    found = json.loads(figures.read_text())
    names = {(row["level"], row["name"]) for row in found["rows"] if "why" not in row}
    assert {("attention", "halves"), ("attention", "full"), ("model", "halves")} <= names
    assert all(row["kernel"] in ("causal", "dense") for row in found["rows"])
    assert found["device"] == "cpu" and all(row["speedup"] > 0 for row in found["rows"])


@pytest.mark.parametrize(
    "flags",
    [
        *("--head_width 48", "--head_width 0", "--head_width -64", "--block_size 100"),
        *("--json absent/figures.json", "--json ."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_measured(
    recipe: ModuleType, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--device", "cpu", *flags.split()]
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.bench_attention, recipe.BenchAttentionConfig, given)
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "allowed" in said.err
