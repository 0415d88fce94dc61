"""Which steps are dropped, and what is said of them."""

import json
import math
from dataclasses import replace

import pytest
import torch

from meloformer.batches.collate import collate_rows
from meloformer.errors import ConfigError
from meloformer.training.bad_steps import BadStepConfig, Judge, Verdict
from meloformer.training.ranks import Ranks

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
WINDOW = 4


def judge(sigma: float = 3.0) -> Judge:
    """One that has seen a full window: losses of mean 2.5 and norms of mean 10."""
    judge = Judge(BadStepConfig(spike_sigma=sigma, spike_window=WINDOW))
    for loss, norm in ((2.0, 9.0), (2.5, 10.0), (2.5, 10.0), (3.0, 11.0)):
        assert decide(judge, loss, norm) is None
    return judge


def decide(judge: Judge, loss: float, norm: float) -> str | None:
    return judge.decide(loss, norm, ALONE).objection


# mean + 3 x sqrt(0.125) = 3.5607 and 10 + 3 x sqrt(0.5) = 12.1213
@pytest.mark.parametrize(
    ("loss", "norm", "name"),
    [
        (3.5606, 12.1212, None),
        (3.5608, 10.0, "loss"),
        (2.5, 12.1214, "gradient norm"),
        (0.0, 0.0, None),
    ],
)
def test_a_step_is_a_spike_from_sigma_deviations_above_the_mean_on_and_never_below(
    loss: float, norm: float, name: str | None
) -> None:
    objection = decide(judge(), loss, norm)
    assert (objection is None) == (name is None)
    assert objection is None or objection.startswith(name or "")


def test_without_sigma_only_what_is_not_finite_is_dropped() -> None:
    lenient = judge(sigma=0.0)
    assert decide(lenient, 1e30, 1e30) is None
    assert decide(lenient, math.nan, 1.0) == "loss is not finite"
    assert decide(lenient, 1.0, math.inf) == "gradient norm is not finite"


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    early = Judge(BadStepConfig(spike_sigma=1.0, spike_window=WINDOW))
    for _ in range(WINDOW - 1):
        assert decide(early, 1.0, 1.0) is None
    assert decide(early, 1e6, 1e6) is None
    assert decide(early, 1e9, 1.0) is not None


def test_a_dropped_step_does_not_move_what_later_steps_are_compared_with() -> None:
    strict = judge()
    before = strict.state()
    assert decide(strict, 100.0, 10.0) and decide(strict, math.nan, 10.0)
    assert strict.state() == before
    assert decide(strict, 2.5, 10.0) is None
    assert strict.state() == [*before[1:], [2.5, 10.0]]


def test_a_judge_from_a_checkpoint_decides_as_the_one_that_was_saved() -> None:
    saved = judge()
    config = BadStepConfig(spike_sigma=3.0, spike_window=WINDOW)
    restored = Judge(config, json.loads(json.dumps(saved.state())))
    for loss, norm in ((3.3, 10.0), (3.7, 10.0), (1.0, 12.0), (3.0, 13.0)):
        assert decide(restored, loss, norm) == decide(saved, loss, norm)
    assert restored.state() == saved.state()


def test_a_dropped_step_is_described_batch_by_batch() -> None:
    losses = [torch.tensor(1.5), torch.tensor(math.nan), torch.tensor(0.0)]
    empty = collate_rows([[]], 8)
    batches = [replace(empty, num_targets=num_targets) for num_targets in (6, 4, 0)]
    verdict = Verdict(loss=math.nan, grad_norm=1.0, objection="loss is not finite")
    keys = [[["a", "b"]], [["c"]], [[]]]
    assert verdict.describe(batches, losses, keys, 10, ALONE) == {
        "why": "loss is not finite",
        "batches": [
            {"micro_step": 0, "rank": 0, "loss": 2.5, "pieces": ["a", "b"]},
            {"micro_step": 1, "rank": 0, "loss": None, "pieces": ["c"]},
            {"micro_step": 2, "rank": 0, "loss": None, "pieces": []},
        ],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_skipped_steps", 0),
        ("spike_window", 1),
        ("spike_sigma", -1.0),
        ("spike_sigma", math.nan),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name} .*allowed"):
        BadStepConfig(**{name: value})  # type: ignore[arg-type]
