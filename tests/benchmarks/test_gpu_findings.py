import dataclasses
import json

import pytest
import torch
from rich.console import Console

from meloformer.benchmarks import flex_trial
from meloformer.benchmarks.flex_trial import FlexTrial, try_flex
from meloformer.benchmarks.gpu_findings import GpuFinding, absence, findings_table, look_at_gpus
from meloformer.model import attention
from meloformer.training.devices import DeviceFacts

FACTS = DeviceFacts(
    name="NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    sm=(12, 0),
    memory_bytes=95 << 30,
    has_bf16=True,
    driver="580.95.05",
    torch_version="2.13.0+cu130",
    arch_list=("sm_90", "sm_120"),
)
RIGHT = FlexTrial(seconds=20, error=0.004, failure=None, has_backward=True)


def found(trial: FlexTrial | None = RIGHT, **changes) -> GpuFinding:
    return GpuFinding(index=1, facts=dataclasses.replace(FACTS, **changes), trial=trial)


def test_a_gpu_that_can_train_has_no_problems() -> None:
    assert found().problems == []
    assert found(trial=None).problems == []
    assert found().architecture == "Blackwell"


def test_each_problem_is_a_line_with_its_gpu_and_what_is_allowed() -> None:
    lacking = found(arch_list=("sm_90",), has_bf16=False, trial=None).problems
    assert len(lacking) == 2
    assert all(line.startswith("GPU 1: ") and "; allowed: " in line for line in lacking)
    assert "pip install torch==2.13.0" in lacking[0]
    assert "bf16" in lacking[1]


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (FlexTrial(seconds=3, error=0.2, failure=None, has_backward=True), "WRONG"),
        (FlexTrial(seconds=3, error=float("nan"), failure=None, has_backward=True), "WRONG"),
        (FlexTrial(seconds=3, error=None, failure="E: no", has_backward=True), "fails: E: no"),
    ],
)
def test_a_kernel_that_is_wrong_or_does_not_compile_is_a_problem(trial, said) -> None:
    (line,) = found(trial=trial).problems
    assert said in line


def test_an_unknown_gpu_of_a_known_generation_has_its_name_and_others_none() -> None:
    assert found(name="NVIDIA L4", sm=(8, 9)).architecture == "Ada Lovelace"
    assert found(name="NVIDIA T4", sm=(7, 5)).architecture == "unknown"


def test_the_table_and_the_json_say_what_was_found() -> None:
    console = Console(width=200, record=True)
    console.print(findings_table([found(), found(arch_list=("sm_90",), trial=None)]))
    said = console.export_text()
    for words in ("95.0", "580.95.05", "0.40%", "NOT built for it", "not tried", "sm_120"):
        assert words in said
    facts = json.loads(json.dumps(found().to_json()))
    assert facts["flex"]["is_right"] and facts["torch_has_code"] and facts["problems"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_one_line_says_why() -> None:
    assert look_at_gpus(with_flex=True) == []
    assert absence().startswith("no CUDA device: torch ") and "\n" not in absence()


@pytest.mark.slow
def test_the_trial_finds_the_compiled_kernel_right_on_the_cpu_forward() -> None:
    trial = try_flex(torch.device("cpu"))
    assert trial.is_right, trial
    assert not trial.has_backward


@pytest.mark.parametrize(("wrong", "error"), [(1.0, 0.0), (1.1, 0.1), (float("nan"), float("nan"))])
def test_the_trial_judges_by_how_wrong_a_kernel_is(
    wrong, error, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense attention in fp32 stands for the kernel, which takes too long to compile."""

    def update(q, k, v, plan):
        return right(q, k, v, plan) * (wrong if q.dtype == torch.float32 else 1)

    right, dense = attention.update, attention.build_plan
    monkeypatch.setattr(attention, "update", update)
    monkeypatch.setattr(flex_trial, "build_plan", lambda layout, rule, *flex: dense(layout, rule))
    trial = try_flex(torch.device("cpu"))
    assert trial.error == pytest.approx(error, abs=1e-5, nan_ok=True)
    assert trial.is_right is (wrong == 1)


def test_what_a_kernel_raises_is_the_answer_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(q, k, v, plan):
        if q.dtype == torch.float32:
            raise RuntimeError("no kernel image\nand much more")
        return right(q, k, v, plan)

    right, dense = attention.update, attention.build_plan
    monkeypatch.setattr(attention, "update", update)
    monkeypatch.setattr(flex_trial, "build_plan", lambda layout, rule, *flex: dense(layout, rule))
    trial = try_flex(torch.device("cpu"))
    assert trial.failure == "RuntimeError: no kernel image" and not trial.is_right


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_trial_finds_the_kernel_right_on_this_gpu_forward_and_backward() -> None:
    trial = try_flex(torch.device("cuda"))
    assert trial.is_right and trial.has_backward, trial
