"""Verdicts of the GPU report: goals, predicted peaks, and what is measured again."""

from pathlib import Path
from typing import Any

from meloformer.benchmarks.gpu_parts import Scale, children_of
from meloformer.benchmarks.gpu_peaks import least_checkpointing, predicted_peak
from meloformer.benchmarks.gpu_report import (
    goals_of,
    keep_aside,
    merged,
    read_earlier,
    with_figures,
    write_report,
)
from meloformer.benchmarks.speed_claims import SPEED


def run_of(size: str, **figures: Any) -> dict[str, Any]:
    return {
        "model_size": size,
        "rule": "halves",
        "max_seq_len": 8192,
        "batch_size": 4,
        "steps": 200,
        "tokens_per_second": 150_000.0,
        "mfu": 0.46,
        "data_wait": 0.01,
        "busy": 0.97,
        "graphs": 6,
        "peak_measured": 100,
        "first_loss": 5.0,
        "last_loss": 3.0,
        "busy_steps": None,
        "cold_s": 80.0,
        "warm_s": None,
    } | figures


def found_of(*runs: dict[str, Any]) -> dict[str, Any]:
    speedup = {"level": "model", "tokens": 8192, "name": "halves", "kernel": "flex", "speedup": 1.3}
    step = {"name": "museformer", "kernel": "flex", "tokens_per_second": 9.0, "mfu": 0.3}
    step |= {"memory": 77}
    return {
        "attention": [speedup],
        "train": list(runs),
        "steps": [step | {"graphs": 2, "graphs_declared": 2}],
        "children": [],
        "warm_s": 12.0,
    }


def test_goals_are_judged_by_what_was_measured_and_only_by_that() -> None:
    base = run_of("base", last_loss=6.0, busy_steps=(200, 400))
    report = with_figures(found_of(run_of("large", busy=0.1), base), lambda run: 108)
    verdicts = {row["id"]: row["verdict"] for row in goals_of(report)}
    assert len(verdicts) == len(SPEED)
    expected = {
        "train-tokens": "PASS",
        "train-mfu": "PASS",
        "attention-halves-8k": "MISS",
        "attention-museformer-8k": "NOT RUN",
        "loss-fall-large": "PASS",
        "loss-fall-base": "MISS",
        "busy": "PASS",
        "cold-s": "PASS",
        "warm-s": "PASS",
        "peak-error": "PASS",
        "graphs-beyond": "PASS",
        "longest-row": "NOT RUN",
    }
    assert {name: verdicts[name] for name in expected} == expected
    rules = report["rules"]
    assert rules["halves"]["speedup_8k"] == 1.3 and rules["halves"]["peak_predicted"] == 108
    assert rules["museformer"]["tokens_per_second"] == 9.0
    assert rules["museformer"]["peak_measured"] == 77
    assert rules["museformer"]["busy"] is None


def test_the_peak_of_the_long_row_is_held_against_its_prediction_too() -> None:
    found = found_of(run_of("large")) | {"long_row": run_of("large", peak_measured=50)}
    assert with_figures(found, lambda run: 100)["peak_error"] == 100


def test_a_predicted_peak_grows_with_the_row_and_with_the_model() -> None:
    peak = predicted_peak(run_of("base"))
    assert peak < predicted_peak(run_of("large"))
    assert peak < predicted_peak(run_of("base", max_seq_len=16384))


def test_a_prediction_knows_what_is_computed_again_and_in_which_precision() -> None:
    peak = predicted_peak(run_of("base"))
    assert predicted_peak(run_of("base", checkpointing="layer")) < peak
    assert predicted_peak(run_of("base", attention_dtype="float32")) > peak


def test_the_long_row_is_trained_with_no_more_checkpointing_than_the_device_wants(
    tmp_path: Path,
) -> None:
    needed = [least_checkpointing("large", 65_536, gib * 2**30) for gib in (139.7, 79.1, 2)]
    assert needed[0] == "none" and needed[1] in ("ffn", "layer") and needed[2] == "layer"
    scale = Scale(data="data_shards/default", long_row_checkpointing="ffn")
    for one in children_of(scale, tmp_path):
        assert ("ffn" in one.command) == (one.name == "long-row")


def test_a_part_that_is_measured_again_takes_the_place_of_what_it_was() -> None:
    earlier = found_of(run_of("large"), run_of("base"))
    again: dict[str, Any] = dict.fromkeys(("attention", "steps", "children"), ())
    again |= {"train": [run_of("large", mfu=0.1)]}
    both = merged(earlier, again)
    mfu = {run["model_size"]: run["mfu"] for run in both["train"]}
    assert mfu == {"large": 0.1, "base": 0.46}
    assert both["attention"] == earlier["attention"] and both["warm_s"] == 12.0


def test_a_figure_that_nobody_found_this_time_does_not_erase_the_one_that_was() -> None:
    again = {"attention": [], "train": [], "steps": [], "children": [], "warm_s": None}
    assert merged(found_of(), again)["warm_s"] == 12.0


def test_figures_of_other_versions_or_of_changed_files_are_not_mixed_and_not_lost(
    tmp_path: Path,
) -> None:
    facts = {"device": "H100", "commit": "1a2b3c4", "versions": "torch 2.13.0", "data": "default"}
    path = tmp_path / "gpu-h100-1a2b3c4.json"
    assert read_earlier(path, facts) is None and keep_aside(path) is None
    write_report(facts | {"date": "yesterday"}, path)
    assert read_earlier(path, facts) == facts | {"date": "yesterday"}
    assert read_earlier(path, facts | {"versions": "torch 2.11.0"}) is None
    dirty = facts | {"commit": "1a2b3c4+"}
    write_report(dirty, path)
    assert read_earlier(path, dirty) is None
    path.write_text("half a rep")
    assert read_earlier(path, facts) is None
    kept = keep_aside(path)
    assert kept is not None and kept.read_text() == "half a rep" and not path.exists()
    path.write_text("another")
    assert keep_aside(path) != kept and len(list(tmp_path.iterdir())) == 2
