"""Phases of a real run: what it says of each, and that stopping in any of them changes nothing."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.batches.phases import PhaseConfig, PhaseEnds
from meloformer.command_line import parse_flags
from meloformer.model.weights import load_weights
from meloformer.training.config import TrainConfig
from meloformer.training.metrics import METRICS_NAME
from meloformer.training.phase_meter import PhaseMeter, forget_peaks, host_peak
from meloformer.training.ranks import Ranks
from meloformer.training.run_folder import RUN_NAME
from tests.training.launching import ROOT, run, torchrun

CPU = torch.device("cpu")
NUM_STEPS = 6
# Step 1; steps 2 and 3; steps 4 to 6.
ENDS = PhaseEnds(phase_1_until=1, phase_2_until=3)
PHASE_OF_STEP = [1, 2, 2, 3, 3, 3]


def flags_of(shards: Path, output: Path) -> list[str]:
    return (
        f"--data {shards} --config {ROOT}/ds_configs/zero1.json --model_size tiny "
        "--max_seq_len 128 --batch_size 2 --gradient_accumulation_steps 2 --num_workers 1 "
        "--learning_rate 1e-3 --warmup_steps 2 --save_every 1 --keep_last 0 --validation_rows 1 "
        f"--validate_every 0 --device cpu --samples 0 --max_steps {NUM_STEPS} --phases on "
        f"--phase_1_until {ENDS.phase_1_until} --phase_2_until {ENDS.phase_2_until} "
        f"--output {output}"
    ).split()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, int, float, float]]:
    return [
        (line["step"], line["phase"], line["loss"], line["grad_norm"]) for line in lines(folder)
    ]


@pytest.fixture(scope="module")
def undisturbed(
    recipe: ModuleType, chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a run through all phases, with a checkpoint after each step."""
    output = tmp_path_factory.mktemp("phases") / "undisturbed"
    recipe.main(parse_flags(TrainConfig, flags_of(chorale_shards, output)))
    return output


def stopped_after(step: int, undisturbed: Path, output: Path) -> None:
    """What a run that was killed right after the checkpoint of a step has left behind."""
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "model")
    for later in range(step + 1, NUM_STEPS + 1):
        shutil.rmtree(output / f"checkpoints/step-{later}")


def test_a_run_says_of_each_phase_its_steps_micro_batch_workers_seconds_and_peak(
    undisturbed: Path,
) -> None:
    assert [line["phase"] for line in lines(undisturbed)] == PHASE_OF_STEP
    told = json.loads((undisturbed / RUN_NAME).read_text())["starts"][-1]["phases"]
    names = ("phase", "first_step", "last_step", "micro_batch_rows", "num_workers")
    assert [tuple(phase[name] for name in names) for phase in told] == [
        (1, 1, 1, 1, 0),
        (2, 2, 3, 1, 1),
        (3, 4, 6, 2, 1),
    ]
    for phase in told:
        steps = lines(undisturbed)[phase["first_step"] - 1 : phase["last_step"]]
        assert phase["seconds_in_steps"] == pytest.approx(sum(s["step_seconds"] for s in steps))
        assert phase["seconds"] >= phase["seconds_in_steps"]
        assert phase["memory"] is phase["memory_held"] is None, "there is no GPU"
        assert phase["memory_host"] > 1 << 26
        assert (phase["memory_workers"] > 1 << 20) == (phase["num_workers"] > 0)
    log = (undisturbed / "train.log").read_text()
    assert "phase 2 until step 3: micro-batches of 1 row, 1 data worker" in log
    assert re.search(
        r"phase 2 is over after step 3: micro-batches of 1 row, 1 data worker, 2 steps in [\d.]+ "
        r"s, [\d.]+ s of them in steps; peak of the host [\d.]+ GiB and [\d.]+ GiB in data workers",
        log,
    )
    assert log.count(" is over after step ") == 3


# In phase 2, at the switches on either side of it, and in phase 3. Phase 1 is one step: its only
# end is the first switch.
@pytest.mark.parametrize("step", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_stopped_in_a_phase_or_where_two_meet_goes_on_as_if_it_had_not_been(
    step: int, undisturbed: Path, recipe: ModuleType, chorale_shards: Path, tmp_path: Path
) -> None:
    stopped_after(step, undisturbed, tmp_path / "run")
    flags = [*flags_of(chorale_shards, tmp_path / "run"), "--resume", "auto"]
    recipe.main(parse_flags(TrainConfig, flags))
    assert losses(tmp_path / "run") == losses(undisturbed)
    before, after = (load_weights(run / "model") for run in (undisturbed, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    start = json.loads((tmp_path / "run" / RUN_NAME).read_text())["starts"][-1]
    assert start["phases"][0]["first_step"] == step + 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("step", [1, 2, 3])
def test_another_number_of_ranks_goes_on_from_any_phase(
    step: int, undisturbed: Path, chorale_shards: Path, tmp_path: Path
) -> None:
    stopped_after(step, undisturbed, tmp_path / "run")
    flags = [*flags_of(chorale_shards, tmp_path / "run"), "--resume", "auto"]
    done = run([*torchrun(2), "launch/train.py", *flags], limit_seconds=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for found, expected in zip(losses(tmp_path / "run"), losses(undisturbed), strict=True):
        assert found[:2] == expected[:2]
        assert found[2:] == pytest.approx(expected[2:], abs=1e-4)


def meter(phases: PhaseConfig, num_steps: int) -> tuple[PhaseMeter, list[str]]:
    said: list[str] = []
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=CPU)
    return PhaseMeter(phases, num_steps, ranks, said.append), said


def passed(phases: PhaseConfig, steps: list[int], num_steps: int) -> list[tuple[int, int, int]]:
    """Number, first and last step of the phases that are over after some steps."""
    found, _ = meter(phases, num_steps)
    for step in steps:
        found.enter(step)
        found.leave(step, 1.0)
    return [(facts.phase, facts.first_step, facts.last_step) for facts in found.over]


def test_a_phase_is_over_with_its_last_step_with_the_runs_last_step_or_by_going_back() -> None:
    phases = PhaseConfig(num_workers=0, ends=ENDS)
    assert passed(phases, [1, 2, 3, 4, 5], 5) == [(1, 1, 1), (2, 2, 3), (3, 4, 5)]
    assert passed(phases, [1, 2], 2) == [(1, 1, 1), (2, 2, 2)]
    assert passed(phases, [3, 4], 9) == [(2, 3, 3)]
    assert passed(phases, [4, 5, 2, 3, 4], 9) == [(2, 2, 3)], "a rollback from phase 3 to 2"
    assert passed(replace(phases, phases="off"), [1, 2, 3, 4], 4) == [(3, 1, 4)]


def test_without_phases_nothing_is_said() -> None:
    off, said = meter(PhaseConfig(phases="off", num_workers=0), 1)
    off.enter(1)
    assert off.leave(1, 1.0) and not said


def test_the_peak_of_a_start_outlives_the_phases_that_forget_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([52, 10, 9])  # after the trial, after phase 1, after phase 2
    monkeypatch.setattr("meloformer.training.phase_meter.device_memory", lambda device: next(peaks))
    found, _ = meter(PhaseConfig(num_workers=0, ends=ENDS), 9)
    for step in (1, 2, 4):
        found.enter(step)
        assert found.peak_of_start(8) == 52
    assert found.peak_of_start(60) == 60
    assert found.peak_of_start(None) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_the_peak_of_the_host_is_forgotten_where_a_phase_begins() -> None:
    size = 1 << 28
    forget_peaks(CPU)
    before = host_peak()
    held = torch.ones(size // 4)
    assert host_peak() >= before + 0.9 * size
    del held
    forget_peaks(CPU)
    assert host_peak() < before + 0.5 * size


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "come before the last phase, whose micro-batches of 6 rows, 8 data workers begin"),
        (["--phase_1_until", "0", "--phase_2_until", "3"], ""),
        (["--phases", "off"], ""),
    ],
)
def test_a_run_that_is_over_before_its_last_phase_is_told_so(
    flags: list[str],
    words: str,
    recipe: ModuleType,
    chorale_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = f"--data {chorale_shards} --max_steps 4 --dry_run --device cpu --phases on"
    command = [*common.split(), "--max_seq_len", "512", "--output", str(tmp_path / "run"), *flags]
    recipe.main(parse_flags(TrainConfig, command))
    said = " ".join(re.sub("[│ \n]+", " ", capsys.readouterr().out).split())
    assert words in said
    assert ("--phase_2_until 100; lower both ends, or --phases off" in said) == bool(words)
    if "off" not in flags:
        assert "phases steps 1-" in said
