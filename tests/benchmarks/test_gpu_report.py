"""The GPU report where there is no GPU: its machinery, its verdicts, and its refusal."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import psutil
import pytest
import torch

from meloformer.benchmarks import child_runs, gpu_report
from meloformer.benchmarks.bench_rows import find_rows
from meloformer.benchmarks.choices import ChoicesConfig
from meloformer.benchmarks.gpu_checks import GpuChecksConfig, check_gradients
from meloformer.benchmarks.gpu_parts import Child, Part, Scale, children_of, run_figures
from meloformer.benchmarks.gpu_peaks import predicted_peak
from meloformer.benchmarks.gpu_report import (
    goals_of,
    run_report,
    with_figures,
    write_report,
)
from meloformer.benchmarks.precision_memory import PrecisionMemoryConfig
from meloformer.command_line import parse_flags, run_recipe
from meloformer.training.config import TrainConfig
from tests.benchmarks.test_gpu_verdicts import found_of
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).parents[2]


def child(name: str, code: str, seconds: float = 300.0, **changes: Any) -> Child:
    return Child(
        name=name,
        part="graphs",
        command=(sys.executable, "-c", code),
        seconds=seconds,
        read=lambda folder: json.loads((folder / f"{name}.json").read_text()),
        **changes,
    )


def reported(children: list[Child], folder: Path, minutes: float = 60.0) -> dict[str, Any]:
    found, stopped_by = run_report(
        children, folder, root=folder, minutes=minutes, say=lambda line: None
    )
    assert stopped_by is None
    return found


def clock(now: Callable[[], float]) -> SimpleNamespace:
    """What reports look at instead of the time of a machine that may stand still."""
    return SimpleNamespace(monotonic=now)


def test_what_fails_or_hangs_is_a_row_with_its_reason_and_costs_no_other_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now() -> float:
        """Past the limit of what hangs once it has left all that it leaves."""
        log = tmp_path / "hangs.log"
        return 1000.0 if log.exists() and log.read_text().endswith("\n") else 0.0

    monkeypatch.setattr(child_runs, "time", clock(now))
    hangs = (
        "import subprocess, time; file = open('hangs.json', 'w'); file.write('{\"early\": 1}'); "
        "file.close(); print(subprocess.Popen(['sleep', '3600']).pid, flush=True); time.sleep(3600)"
    )
    children = [
        child("hangs", hangs, seconds=2.0),
        child("fails", "raise SystemExit('no kernel for this card')"),
        child("silent", ""),
        child("works", "open('works.json', 'w').write('{\"warm_s\": 3.5}')"),
    ]
    found = reported(children, tmp_path, minutes=902 / 60)
    reasons = {row["name"]: row["why"] for row in found["children"]}
    assert "no kernel for this card" in reasons["fails"]
    assert reasons["hangs"].startswith("stopped after 2 s: more than the 2 s modelled")
    assert reasons["silent"].startswith("it left no figures")
    assert reasons["works"] == ""
    assert found["warm_s"] == 3.5 and found["early"] == 1, "what was written before stands"
    grandchild = int((tmp_path / "hangs.log").read_text().split()[0])
    deadline = time.monotonic() + 300
    while goes_on(grandchild):
        assert time.monotonic() < deadline, "nothing goes on after its part"
        time.sleep(0.02)


def goes_on(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_parts_for_which_no_time_is_left_are_not_run_and_say_so(tmp_path: Path) -> None:
    code = "open('late.json', 'w').write('{}')"
    found = reported([child("late", code)], tmp_path, minutes=0)
    assert found["children"][0]["why"] == "the 0 minutes were over"
    assert not (tmp_path / "late.json").exists()


def test_every_part_gets_the_seconds_that_are_modelled_and_the_spare_ones_if_it_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "time", clock(lambda: 0.0))
    said: list[str] = []
    children = [child(name, "", seconds=10.0) for name in ("first", "second")]
    run_report(children, tmp_path, root=tmp_path, minutes=0.5, say=said.append)
    assert said[0] == "first: 10 s modelled, at most 20 s"
    run_report(children, tmp_path, root=tmp_path, minutes=0.2, say=said.append)
    assert said[2] == "first: 10 s modelled, at most 10 s"


def test_the_default_parts_fit_into_the_minutes_that_the_command_promises(
    recipe: ModuleType, tmp_path: Path
) -> None:
    config = recipe.GpuReportConfig()
    children = children_of(Scale(data="data_shards/default"), tmp_path)
    seconds = sum(one.seconds for one in children if one.part in config.parts)
    assert 0 < seconds <= 60 * config.minutes
    assert {one.part for one in children} == set(get_args(Part))


def test_a_run_that_has_what_it_is_for_is_ended_and_has_ended_well(tmp_path: Path) -> None:
    code = "import time; open('whole.json', 'w').write('{\"warm_s\": 1}'); time.sleep(3600)"
    whole = child("whole", code, is_done=lambda folder: (folder / "whole.json").exists())
    found = reported([whole], tmp_path)
    assert found["children"][0]["why"] == "" and found["warm_s"] == 1
    assert found["children"][0]["seconds"] < 3600


def test_a_signal_ends_the_report_with_what_was_found_until_then(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time; open('late.json', 'w').write('{\"cold_s\": 7}'); "
        "os.kill(int(sys.argv[1]), signal.SIGINT); time.sleep(3600)"
    )
    late = child("late", code)
    late = replace(late, command=(*late.command, str(os.getpid())))
    children = [child("works", "open('works.json', 'w').write('{\"warm_s\": 3}')"), late]
    # Ignored where the tests run in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found, stopped_by = run_report(
            [*children, child("never", "")], tmp_path, root=tmp_path, minutes=60, say=print
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(stopped_by, KeyboardInterrupt)
    assert found["warm_s"] == 3 and found["cold_s"] == 7
    assert [row["name"] for row in found["children"]] == ["works", "late"]
    assert "stopped by a signal" in found["children"][1]["why"]


def test_every_command_of_the_report_is_one_that_its_recipe_takes(tmp_path: Path) -> None:
    configs = {
        "meloformer.benchmarks.choices": ChoicesConfig,
        "meloformer.benchmarks.precision_memory": PrecisionMemoryConfig,
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


@pytest.mark.parametrize("flags", ["--minutes 0", "--minutes nan", "--parts", "--json no/x.json"])
def test_impossible_flags_are_refused_before_anything_is_measured(
    recipe: ModuleType, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.gpu_report, recipe.GpuReportConfig, flags.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and flags.split()[0] in said and said.count("\n") == 1


def write_run(folder: Path, busy: list[Any], after: str = "") -> None:
    """A run folder with a step for each busy share."""
    settings = {
        "model_size": "large",
        "attention": "halves",
        "max_seq_len": 8192,
        "batch_size": 4,
        "checkpointing": "ffn",
    }
    run = {"settings": settings, "starts": [{"cold_s": 70.0, "warm_s": None}]}
    (folder / "run.json").write_text(json.dumps(run))
    step = {"tokens_per_second": 10.0, "mfu": None, "data_wait": 0.5, "graphs": 6, "memory": 5}
    lines = [
        json.dumps(step | {"loss": float(9 - number), "gpu_utilisation": share})
        for number, share in enumerate(busy)
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, after]))


def test_a_stopped_run_tells_of_the_steps_that_it_did(tmp_path: Path) -> None:
    write_run(tmp_path, [None] * 4, '{"loss": 1.0, "to')
    found = run_figures(tmp_path)
    assert found["steps"] == 4 and found["cold_s"] == 70.0
    assert found["first_loss"] == 8.5 and found["last_loss"] == 6.5
    assert found["mfu"] is None and found["peak_measured"] == 5
    assert found["checkpointing"] == "ffn" and found["attention_dtype"] is None


def test_a_fall_of_the_loss_and_a_busy_share_are_those_of_their_steps_or_nobodys(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, busy=[0.1, 0.2, 0.4, 0.8])
    found = run_figures(tmp_path, loss_steps=2, busy_steps=(1, 3))
    assert (found["first_loss"], found["last_loss"]) == (9.0, 8.0)
    assert found["busy"] == pytest.approx(0.3) and found["busy_steps"] == (1, 3)
    short = run_figures(tmp_path, loss_steps=5, busy_steps=(3, 5))
    assert short["first_loss"] is short["last_loss"] is short["busy"] is None
    report = with_figures(found_of(short | {"model_size": "large"}), lambda run: 1)
    verdicts = {row["id"]: row["verdict"] for row in goals_of(report)}
    assert verdicts["loss-fall-large"] == verdicts["busy"] == "NOT RUN"


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
        busy_size="tiny",
        busy_steps=(4, 10),
        quick_sizes=(),
        memory_size="tiny",
        seq_len=256,
        batch_size=2,
        num_steps=8,
        long_row=512,
        num_workers=0,
        patience=10.0,
    )
    # Small's widths in float64 and the probe are for a GPU; both have tests of their own.
    children = [
        one
        for one in children_of(scale, tmp_path)
        if one.part in ("attention", "train", "memory", "graphs")
    ]
    found, _ = run_report(children, tmp_path, root=ROOT, minutes=30, say=print)
    assert [row["why"] for row in found["children"]] == [""] * len(children)
    report = with_figures(found, predicted_peak)
    write_report({"device": "cpu"} | report, tmp_path / "reports" / "gpu-toy.json")
    written = json.loads((tmp_path / "reports" / "gpu-toy.json").read_text())
    assert written["train"][0]["model_size"] == "tiny" and written["train"][0]["steps"] == 10
    assert written["train"][0]["loss_steps"] == 8
    assert written["train"][0]["last_loss"] < written["train"][0]["first_loss"]
    rows = written["precision_memory"]
    assert [row["attention_precision"] for row in rows] == ["bf16", "fp32"]
    assert all(row["peak_measured"] > 0 and row["peak_predicted"] > 0 for row in rows)
    assert written["longest_row"] == 512 and written["graphs_beyond"] == 0
    assert set(written["rules"]) >= {"museformer"}
