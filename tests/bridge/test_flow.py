import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from meloformer.bridge.flow import (
    Solver,
    draw_times,
    guided,
    noise_of_rows,
    path_at,
    row_seed,
    solve,
)
from meloformer.errors import ConfigError

MEAN, STD = 1.5, 0.4


def best_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[x1 - x0 | x_t = x] for x0 ~ N(0, 1) and, apart from it, x1 ~ N(MEAN, STD^2).

    Both are normal, so the mean of one given the other is a line: slope cov / var.
    """
    variance = (1 - t) ** 2 + (t * STD) ** 2
    covariance = t * STD**2 - (1 - t)
    return MEAN + covariance / variance * (x - t * MEAN)


def test_a_path_begins_at_noise_ends_at_data_and_its_slope_is_their_difference() -> None:
    noise, data = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 2).double()
    assert torch.equal(path_at(noise, data, torch.zeros(3)), noise)
    assert torch.equal(path_at(noise, data, torch.ones(3)), data)
    t_B = torch.tensor([0.1, 0.5, 0.9]).double()
    slope = (path_at(noise, data, t_B + 1e-3) - path_at(noise, data, t_B)) / 1e-3
    torch.testing.assert_close(slope, data - noise)
    of_second_row = 0.5 * noise[1] + 0.5 * data[1]
    torch.testing.assert_close(path_at(noise, data, t_B)[1], of_second_row)


def test_the_closed_form_of_the_best_velocity_is_what_a_least_squares_fit_finds() -> None:
    """The oracle itself, against a regression over drawn pairs at one time."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 1, generator=generator).double()
    data = MEAN + STD * torch.randn(200_000, 1, generator=generator).double()
    t = 0.3
    x = path_at(noise, data, torch.full((200_000,), t).double())
    inputs = torch.cat([x, torch.ones_like(x)], dim=1)
    slope, offset = torch.linalg.lstsq(inputs, data - noise).solution.flatten().tolist()
    for at in (-1.0, 0.7):
        wanted = best_velocity(torch.tensor(at).double(), t).item()
        assert slope * at + offset == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 800), ("heun", 60)])
def test_noise_arrives_as_the_data_that_the_velocity_was_made_for(
    solver: Solver, steps: int
) -> None:
    noise = torch.randn(50_000, generator=torch.Generator().manual_seed(1)).double()
    arrived = solve(best_velocity, noise, steps=steps, solver=solver)
    assert arrived.mean().item() == pytest.approx(MEAN + STD * noise.mean().item(), abs=2e-3)
    assert arrived.std().item() == pytest.approx(STD * noise.std().item(), abs=2e-3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_steps_shows_the_order_of_a_solver(solver: Solver, order: int) -> None:
    noise = torch.tensor([-2.0, -0.5, 0.3, 1.7]).double()
    exact = MEAN + STD * noise
    errors = [
        (solve(best_velocity, noise, steps=steps, solver=solver) - exact).abs().max().item()
        for steps in (80, 160, 320)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 10), ("heun", 20)])
def test_a_solver_asks_for_as_many_velocities_as_it_says_and_none_outside_0_to_1(
    solver: Solver, calls: int
) -> None:
    asked: list[float] = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        asked.append(t)
        return x

    solve(velocity, torch.zeros(1), steps=10, solver=solver)
    assert len(asked) == calls and asked[0] == 0
    assert min(asked) >= 0 and max(asked) <= 1 + 1e-12


def test_the_state_keeps_its_precision_where_the_velocity_has_less() -> None:
    arrived = solve(lambda x, t: x.bfloat16(), torch.ones(3), steps=4)
    assert arrived.dtype == torch.float32


def test_what_no_solver_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--steps 0: allowed 1 or more"):
        solve(best_velocity, torch.zeros(1), steps=0)
    with pytest.raises(ConfigError, match="--solver rk4: allowed euler, heun"):
        solve(best_velocity, torch.zeros(1), steps=1, solver="rk4")  # type: ignore[arg-type]


def test_noise_of_a_row_knows_its_seed_alone() -> None:
    alone = noise_of_rows([5], 12, 6)
    among = noise_of_rows([2, 5, 9], 12, 6)
    assert torch.equal(alone[0], among[1])
    assert torch.equal(noise_of_rows([5], 40, 6)[:, :12], alone), "whatever bars are asked for"
    assert not torch.equal(among[0], among[1])


def test_seeds_of_rows_differ_by_run_and_by_row() -> None:
    seeds = {row_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0 and max(seeds) < 2**63


def test_noise_is_standard_normal_and_its_rows_are_independent() -> None:
    noise = noise_of_rows(range(40), 20, 50).flatten(1).double()
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    between = torch.corrcoef(noise) - torch.eye(40).double()
    assert between.abs().max().item() < 0.16, "five standard errors of 1,000 pairs"


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_times_lie_between_0_and_1_as_their_law_says(times: str) -> None:
    generator = torch.Generator().manual_seed(3)
    t_B = draw_times(40_000, times, generator)  # type: ignore[arg-type]
    assert t_B.min() >= 0 and t_B.max() <= 1
    quarters = Counter((t_B * 4).long().clamp(max=3).tolist())
    # P(t < 1/4) of sigmoid(N(0, 1)): normal distribution function at log(1/3).
    outer = 0.25 if times == "uniform" else 0.5 * math.erfc(math.log(3) / math.sqrt(2))
    assert quarters[0] / 40_000 == pytest.approx(outer, abs=0.01)
    assert quarters[3] / 40_000 == pytest.approx(outer, abs=0.01)


def test_guidance_0_forgets_the_condition_1_is_the_condition_and_2_goes_beyond_it() -> None:
    given, free = torch.tensor([3.0]), torch.tensor([1.0])
    found = [guided(given, free, scale).item() for scale in (0, 1, 2)]
    assert found == [1.0, 3.0, 5.0]
