"""Rectified flow: straight paths from noise to data, and what solves their equation afterwards.

Time runs from 0, noise, to 1, data: x_t = (1 - t) x_0 + t x_1 moves at the constant velocity
x_1 - x_0, a network learns the mean of it at every (x_t, t), and dx/dt = velocity(x, t) carries
fresh noise to fresh data.

Source: Liu et al. 2022, "Flow Straight and Fast: Learning to Generate and Transfer Data with
Rectified Flow"; Lipman et al. 2022, "Flow Matching for Generative Modeling", with independent
noise and data: pairing the two inside a batch bends the distribution under a condition.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from meloformer.errors import ConfigError

Solver = Literal["euler", "heun"]
Times = Literal["uniform", "logit_normal"]

Velocity = Callable[[Tensor, float], Tensor]


def path_at(noise: Tensor, data: Tensor, t_B: Tensor) -> Tensor:
    """Where the straight path from noise to data is at a time.

    Args:
        noise: (B, ...).
        data: (B, ...).
        t_B: one time for each row, 0 to 1.
    """
    t = t_B.view(-1, *(1,) * (data.dim() - 1))
    return (1 - t) * noise + t * data


def draw_times(num_rows: int, times: Times, generator: torch.Generator | None = None) -> Tensor:
    """(B,) times of training, on the generator's device.

    Args:
        num_rows: B.
        times: `uniform`, or `logit_normal`: sigmoid of a standard normal number, which spends less
            on both ends, where the best guess is easy.
        generator: of torch; its own if none is given.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", section 3.1.
    """
    device = generator.device if generator else None
    if times == "uniform":
        return torch.rand(num_rows, generator=generator, device=device)
    return torch.randn(num_rows, generator=generator, device=device).sigmoid()


def row_seed(seed: int, *numbers: int) -> int:
    """A seed of 63 bits from a seed and what tells a row from others, such as a piece's number.

    Args:
        seed: of a run, 0 or more.
        numbers: 0 or more each.

    >>> row_seed(0, 1) == row_seed(0, 1), row_seed(0, 1) == row_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> 1)


def noise_of_rows(
    seeds: Sequence[int], num_bars: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(B, S, D) standard normal numbers, each row's from its own seed alone.

    Neither the place of a row in its batch, nor the bars asked for, nor the device change what a
    bar begins from.

    Args:
        seeds: one for each row, 0 or more.
        num_bars: S.
        width: D.
        device: where they are wanted.
    """
    rows = [
        np.random.default_rng(seed).standard_normal((num_bars, width), dtype=np.float32)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows)).to(device)


def solve(velocity: Velocity, start: Tensor, *, steps: int, solver: Solver = "euler") -> Tensor:
    """Carry noise along a velocity from time 0 to 1.

    Args:
        velocity: of (x, t); Euler asks it once a step, Heun twice.
        start: x at time 0, any shape; the result has its dtype.
        steps: of equal length.
        solver: `euler`, of first order, or `heun`, of second.

    Raises:
        ConfigError: no such solver, or no step.

    >>> solve(lambda x, t: -x, torch.ones(1, dtype=torch.float64), steps=2, solver="heun").item()
    0.390625
    """
    check_solver(steps, solver)
    x, length = start, 1 / steps
    for step in range(steps):
        t = step * length
        slope = velocity(x, t).to(x.dtype)
        if solver == "heun":
            ahead = velocity(x + length * slope, (step + 1) * length).to(x.dtype)
            slope = (slope + ahead) / 2
        x = x + length * slope
    return x


def check_solver(steps: int, solver: str) -> None:
    """Refuse what `solve` cannot do.

    Raises:
        ConfigError: no such solver, or no step.
    """
    if solver not in get_args(Solver):
        raise ConfigError(f"--solver {solver}: allowed {', '.join(get_args(Solver))}")
    if steps < 1:
        raise ConfigError(f"--steps {steps}: allowed 1 or more")


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Velocity that leans towards a condition: 0 ignores it, 1 is it, more exaggerates it.

    Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", with their 1 + w for
    `guidance`.
    """
    return unconditional + guidance * (conditional - unconditional)
