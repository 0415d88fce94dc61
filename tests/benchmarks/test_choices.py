"""Choices at toy scale: who wins, who is refused, and that all of it runs without a GPU."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from meloformer.benchmarks.alternation import Failure, Timing
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import find_rows
from meloformer.benchmarks.choice_trials import (
    Choice,
    Conditions,
    choices_table,
    measure_choices,
    winner,
)
from meloformer.benchmarks.choices import ChoicesConfig, main
from meloformer.benchmarks.liger_kernels import cross_entropy, take_norms, take_swiglu
from meloformer.model import fused

LENGTH = 128
CONFIG = replace(sized_config("tiny", LENGTH), num_layers=2)
CONDITIONS = Conditions(
    rows=find_rows(None, "one_piece", LENGTH, 1),
    device=torch.device("cpu"),
    dtype=torch.float32,
    rounds=1,
)


def choice(name: str, **changes: Any) -> Choice:
    return Choice(question="which", name=name, config=CONFIG, **changes)


def measured(*choices: Choice) -> dict[str, dict[str, Any]]:
    (rows,) = measure_choices(choices, CONDITIONS)
    return {row["name"]: row for row in rows}


def timing(*seconds: float) -> Timing:
    return Timing(seconds=seconds, first_seconds=0.0, memory=None, graphs=0)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The interface of Liger's kernels, computed by torch: what is tried is how we call it."""
    functional = ModuleType("liger_kernel.transformers.functional")

    def rms_norm(x, weight, eps, in_place=True):
        return F.rms_norm(x, weight.shape, weight, eps)

    def loss(logits, targets, ignore_index=-100, reduction="mean"):
        return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)

    functional.liger_rms_norm = rms_norm  # type: ignore[attr-defined]
    functional.liger_swiglu = lambda gate, value: F.silu(gate) * value  # type: ignore[attr-defined]
    functional.liger_cross_entropy = loss  # type: ignore[attr-defined]
    package, transformers = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    transformers.functional = functional  # type: ignore[attr-defined]
    for module in (package, transformers, functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return functional


def test_another_wins_only_if_it_is_ahead_by_more_than_both_spread() -> None:
    steady = {"ours": timing(1.0, 1.02), "other": timing(0.9, 0.91)}
    assert winner(steady) == "other"
    assert winner(steady | {"other": timing(0.8, 1.0, 1.2)}) == "ours"
    assert winner({"ours": Failure("no memory"), "other": timing(2.0)}) == "other"
    assert winner({"ours": Failure("no memory")}) is None


def test_kernels_of_others_that_compute_what_ours_do_are_timed(liger: ModuleType) -> None:
    found = measured(
        choice("ours"),
        choice("norm", adapt=take_norms),
        choice("swiglu", adapt=take_swiglu),
        choice("loss", loss=cross_entropy),
    )
    assert all("why" not in row for row in found.values()), found
    assert found["ours"]["times_first"] == 1 and found["norm"]["error"] < 1e-3
    assert sum(row["is_winner"] for row in found.values()) == 1


def test_a_kernel_that_computes_something_else_is_refused(liger: ModuleType) -> None:
    liger.liger_swiglu = lambda gate, value: F.gelu(gate) * value  # type: ignore[attr-defined]
    found = measured(choice("ours"), choice("gelu", adapt=take_swiglu))
    assert "refused: loss and gradients are off by" in found["gelu"]["why"]
    assert found["ours"]["is_winner"] and found["ours"]["error"] < 1e-3


def test_a_kernel_whose_gradients_are_no_numbers_is_refused(liger: ModuleType) -> None:
    liger.liger_swiglu = lambda gate, value: gate * value * torch.nan  # type: ignore[attr-defined]
    found = measured(choice("ours"), choice("none", adapt=take_swiglu))
    assert "off by inf" in found["none"]["why"]
    assert "no numbers" in measured(choice("none", adapt=take_swiglu))["none"]["why"]


def test_what_is_not_installed_is_a_row_with_its_reason() -> None:
    found = measured(choice("ours"), choice("liger", adapt=take_norms), choice("x", refusal="no"))
    assert "liger_kernel" in found["liger"]["why"] and "ms" not in found["liger"]
    assert found["x"]["why"] == "ConfigError: no"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fused parts are made into graphs and run as they are."""
    monkeypatch.setattr(fused, "BACKEND", "eager")
    fused._compiled.cache_clear()
    yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.slow  # some twenty models, and the compiler is loaded
def test_every_question_is_asked_and_its_figures_are_written(traced: None, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    main(
        ChoicesConfig(
            model_size="tiny",
            max_seq_len=LENGTH,
            head_widths=(64, 32, 128),
            rounds=1,
            device="cpu",
            json=path,
        )
    )
    rows = json.loads(path.read_text())["choices"]
    ran = {(row["question"], row["name"]) for row in rows if "why" not in row}
    why = {(row["question"], row["name"]): row["why"] for row in rows if "why" in row}
    assert {name for question, name in ran if question == "heads"} == {"64 wide", "32 wide"}
    assert "1 key/value heads cannot be shared out" in why["heads", "128 wide"]
    assert ("pointwise parts", "fused") in ran and ("storage of hid", "by bar") in ran
    assert "CUDA" in why["tiles", "tuned"] and "FLASH" in why["backend", "FLASH"]
    winners = [row["question"] for row in rows if row["is_winner"]]
    assert winners == list(dict.fromkeys(row["question"] for row in rows))
    assert choices_table(rows).row_count == len(rows)
