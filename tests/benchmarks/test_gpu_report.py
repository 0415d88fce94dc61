"""The GPU report where there is no GPU: its machinery, its verdicts, and its refusal."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from meloformer.benchmarks.bench_rows import find_rows
from meloformer.benchmarks.gpu_checks import GpuChecksConfig, check_gradients
from meloformer.benchmarks.gpu_parts import Child, Scale, children_of, run_figures
from meloformer.benchmarks.gpu_peaks import predicted_peak
from meloformer.benchmarks.gpu_report import (
    goals_of,
    keep_aside,
    merged,
    read_earlier,
    run_report,
    with_figures,
    write_report,
)
from meloformer.benchmarks.speed_claims import SPEED
from meloformer.command_line import parse_flags, run_recipe
from meloformer.training.config import TrainConfig
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).parents[2]


def child(name: str, code: str, limit_seconds: float = 30.0) -> Child:
    return Child(
        name=name,
        part="graphs",
        command=(sys.executable, "-c", code),
        limit_seconds=limit_seconds,
        read=lambda folder: json.loads((folder / f"{name}.json").read_text()),
    )


def reported(children: list[Child], folder: Path, minutes: float = 1.0) -> dict[str, Any]:
    return run_report(children, folder, root=folder, minutes=minutes, say=lambda line: None)


def test_what_fails_or_hangs_is_a_row_with_its_reason_and_costs_no_other_its_figures(
    tmp_path: Path,
) -> None:
    hangs = (
        "import subprocess, sys, time; open('hangs.json', 'w').write('{\"early\": 1}'); "
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    children = [
        child("fails", "raise SystemExit('no kernel for this card')"),
        child("hangs", hangs, limit_seconds=2.0),
        child("silent", ""),
        child("works", "open('works.json', 'w').write('{\"warm_s\": 3.5}')"),
    ]
    found = reported(children, tmp_path)
    reasons = {row["name"]: row["why"] for row in found["children"]}
    assert "no kernel for this card" in reasons["fails"]
    assert reasons["hangs"] == "stopped after 2 s"
    assert reasons["silent"].startswith("it left no figures")
    assert reasons["works"] == ""
    assert found["warm_s"] == 3.5 and found["early"] == 1, "what was written before stands"
    grandchild = (tmp_path / "hangs.log").read_text().split()[0]
    status = Path("/proc") / grandchild / "status"
    assert not status.exists() or "zombie" in status.read_text(), "nothing goes on after its part"


def test_parts_for_which_no_time_is_left_are_not_run_and_say_so(tmp_path: Path) -> None:
    code = "open('late.json', 'w').write('{}')"
    found = reported([child("late", code)], tmp_path, minutes=0)
    assert found["children"][0]["why"] == "the 0 minutes were over"
    assert not (tmp_path / "late.json").exists()


def test_every_command_of_the_report_is_one_that_its_recipe_takes(tmp_path: Path) -> None:
    configs = {
        "launch/train.py": TrainConfig,
        "launch/bench/attention.py": load_recipe("bench/attention.py").BenchAttentionConfig,
        "launch/bench/train.py": load_recipe("bench/train.py").BenchTrainConfig,
        "meloformer.benchmarks.gpu_checks": GpuChecksConfig,
    }
    names = []
    for one in children_of(Scale(data="data_shards/default"), tmp_path):
        recipe, *flags = [word for word in one.command[1:] if word != "-m"]
        parse_flags(configs[recipe], flags)
        names.append(one.name)
    assert len(set(names)) == len(names)


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
        "cold_s": 80.0,
        "warm_s": None,
    } | figures


def found_of(*runs: dict[str, Any]) -> dict[str, Any]:
    speedup = {"level": "model", "tokens": 8192, "name": "halves", "kernel": "flex", "speedup": 1.3}
    step = {"name": "museformer", "kernel": "flex", "tokens_per_second": 9.0, "mfu": 0.3}
    return {
        "attention": [speedup],
        "train": list(runs),
        "steps": [step | {"graphs": 2, "graphs_declared": 2}],
        "children": [],
        "warm_s": 12.0,
    }


def test_goals_are_judged_by_what_was_measured_and_only_by_that() -> None:
    report = with_figures(found_of(run_of("large"), run_of("base", last_loss=6.0)), lambda run: 108)
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
    assert rules["museformer"]["busy"] is None


def test_the_peak_of_the_long_row_is_held_against_its_prediction_too() -> None:
    found = found_of(run_of("large")) | {"long_row": run_of("large", peak_measured=50)}
    assert with_figures(found, lambda run: 100)["peak_error"] == 100


def test_a_predicted_peak_grows_with_the_row_and_with_the_model() -> None:
    peak = predicted_peak(run_of("base"))
    assert peak < predicted_peak(run_of("large"))
    assert peak < predicted_peak(run_of("base", max_seq_len=16384))


def test_a_part_that_is_measured_again_takes_the_place_of_what_it_was() -> None:
    earlier = found_of(run_of("large"), run_of("base"))
    again = {"attention": [], "train": [run_of("large", mfu=0.1)], "steps": [], "children": []}
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


@pytest.mark.parametrize("flags", ["--minutes 0", "--minutes nan", "--parts", "--json no/x.json"])
def test_impossible_flags_are_refused_before_anything_is_measured(
    recipe: ModuleType, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.gpu_report, recipe.GpuReportConfig, flags.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and flags.split()[0] in said and said.count("\n") == 1


def test_a_stopped_run_tells_of_the_steps_that_it_did(tmp_path: Path) -> None:
    settings = {
        "model_size": "large",
        "attention": "halves",
        "max_seq_len": 8192,
        "batch_size": 4,
    }
    run = {"settings": settings, "starts": [{"cold_s": 70.0, "warm_s": None}]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    step = {
        "tokens_per_second": 10.0,
        "mfu": None,
        "data_wait": 0.5,
        "gpu_utilisation": None,
        "graphs": 6,
        "memory": 5,
    }
    lines = [json.dumps(step | {"loss": float(9 - number)}) for number in range(4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"loss": 1.0, "to']))
    found = run_figures(tmp_path)
    assert found["steps"] == 4 and found["cold_s"] == 70.0
    assert found["first_loss"] == 8.5 and found["last_loss"] == 6.5
    assert found["mfu"] is None and found["peak_measured"] == 5


def test_a_sound_kernel_passes_the_gradient_check_in_both_precisions() -> None:
    rows = find_rows(None, "one_piece", 128, num_rows=1)
    found = check_gradients(("full",), rows, 1, torch.device("cpu"))
    assert 0 < found["gradients_fp32"] < 0.2
    assert found["gradients_fp32"] < found["gradients_bf16"] < 6


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("tools/gpu_report.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so_in_a_line_and_ends_with_code_2(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.gpu_report, recipe.GpuReportConfig, ["--output", str(tmp_path)])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and "CUDA" in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_machinery_runs_at_toy_scale_on_a_cpu(
    chorale_shards: Path, tmp_path: Path
) -> None:
    scale = Scale(
        data=str(chorale_shards),
        device="cpu",
        lengths=(256,),
        sizes=("tiny",),
        quick_sizes=(),
        seq_len=256,
        batch_size=2,
        num_steps=8,
        long_row=512,
        num_workers=0,
        patience=10.0,
    )
    # Small's widths in float64 and the probe are for a GPU; both have tests of their own.
    children = [
        one for one in children_of(scale, tmp_path) if one.part not in ("gradients", "precision")
    ]
    found = run_report(children, tmp_path, root=ROOT, minutes=30, say=print)
    assert [row["why"] for row in found["children"]] == [""] * len(children)
    report = with_figures(found, predicted_peak)
    write_report({"device": "cpu"} | report, tmp_path / "reports" / "gpu-toy.json")
    written = json.loads((tmp_path / "reports" / "gpu-toy.json").read_text())
    assert written["train"][0]["model_size"] == "tiny" and written["train"][0]["steps"] == 8
    assert written["train"][0]["last_loss"] < written["train"][0]["first_loss"]
    assert written["longest_row"] == 512 and written["graphs_beyond"] == 0
    assert set(written["rules"]) >= {"museformer"}
