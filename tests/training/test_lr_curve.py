"""The curve of a range test: its moving average, where it turns, what it suggests."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from meloformer.training.lr_curve import SAFETY_FACTOR, RateCurve, save_chart

STEEPEST, TURN = 1e-3, 3e-2


def curve_of(losses: list[float] | np.ndarray, lowest: float = 1e-5) -> RateCurve:
    """A test over five decades, all of whose steps were done."""
    num_steps = len(losses)
    rates = np.geomspace(lowest, lowest * 1e5, num_steps)
    curve = RateCurve(num_steps=num_steps)
    for rate, loss in zip(rates, losses, strict=True):
        curve = curve.after(float(rate), float(loss))
    return curve


def valley(num_steps: int, *, steepest: float = STEEPEST, turn: float = TURN) -> np.ndarray:
    """Losses that fall by a sigmoid in the logarithm of the rate, and explode at the turn."""
    rates = np.geomspace(1e-5, 1.0, num_steps)
    fall = 3 / (1 + np.exp(-3 * np.log(rates / steepest)))
    return 7 - fall + np.exp(np.minimum(6 * np.log(rates / turn), 3)) * (rates > turn / 3)


def until_turned(losses: np.ndarray) -> RateCurve:
    whole, curve = curve_of(losses), RateCurve(num_steps=len(losses))
    for rate, loss in zip(whole.rates, whole.losses, strict=True):
        curve = curve.after(rate, loss)
        if curve.has_turned:
            break
    return curve


def test_the_moving_average_weighs_the_past_by_powers_and_sums_to_one() -> None:
    losses = np.random.default_rng(0).uniform(2, 7, size=100)
    smoothed = curve_of(losses).smoothed
    kept = 1 - 1 / (100 / 20)
    for last in (0, 1, 7, 99):
        weights = kept ** np.arange(last, -1, -1)
        assert smoothed[last] == pytest.approx((weights * losses[: last + 1]).sum() / weights.sum())


@pytest.mark.parametrize("num_steps", [60, 100, 400])
def test_the_suggestion_is_where_the_loss_falls_fastest_however_long_the_test(
    num_steps: int,
) -> None:
    curve = until_turned(valley(num_steps))
    assert curve.has_turned and len(curve.losses) < num_steps, "the test stops at the turn"
    found = curve.suggest()
    assert found is not None and found.turned is not None
    assert found.learning_rate == found.steepest
    assert abs(math.log(found.steepest / STEEPEST)) < math.log(1.5)
    assert TURN / 4 < found.turned < 3 * TURN


def test_the_suggestion_keeps_its_distance_from_a_turn_that_comes_soon() -> None:
    found = until_turned(valley(200, turn=2.5e-3)).suggest()
    assert found is not None and found.turned is not None
    assert found.steepest > found.turned / SAFETY_FACTOR
    assert found.learning_rate == found.turned / SAFETY_FACTOR
    assert "turned" in found.line() and f"{found.learning_rate:.1e}" in found.line()


def test_noise_moves_the_suggestion_by_less_than_a_factor_of_three() -> None:
    rates = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.15, size=100)
        found = until_turned(valley(100) + noise).suggest()
        assert found is not None
        rates.append(found.learning_rate)
    assert max(abs(math.log(rate / STEEPEST)) for rate in rates) < math.log(3)


def test_a_loss_that_never_rises_gives_the_steepest_rate_and_says_what_is_not_known() -> None:
    found = curve_of(valley(100, turn=1e9)).suggest()
    assert found is not None and found.turned is None
    assert "--highest" in found.line()


@pytest.mark.parametrize("losses", [np.full(100, 6.9), np.linspace(6.9, 6.8, 100)])
def test_a_loss_that_hardly_falls_gives_no_suggestion(losses: np.ndarray) -> None:
    curve = curve_of(losses)
    assert curve.suggest() is None and not curve.has_turned
    assert curve.to_json()["learning_rate"] is None


def test_a_loss_that_only_rises_gives_no_suggestion() -> None:
    curve = until_turned(np.linspace(6.9, 30, 100))
    assert curve.has_turned and curve.suggest() is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_turns_the_curve_and_nothing_else(
    wrong: float, tmp_path: Path
) -> None:
    losses = valley(100, turn=1e9)[:80]
    curve = RateCurve(num_steps=100)
    for rate, loss in zip(np.geomspace(1e-5, 1, 100), [*losses, wrong], strict=False):
        assert not curve.losses or not curve.has_turned
        curve = curve.after(float(rate), float(loss))
    assert curve.has_turned
    found = curve.suggest()
    assert found is not None and abs(math.log(found.steepest / STEEPEST)) < math.log(1.5)
    text = json.dumps(curve.to_json(), allow_nan=False)
    assert json.loads(text)["losses"][-1] is None
    assert curve.table("").row_count <= 20
    save_chart(curve, tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_steps_for_a_slope_give_no_suggestion() -> None:
    curve = RateCurve(num_steps=100).after(1e-5, 6.9).after(2e-5, math.nan)
    assert curve.suggest() is None
