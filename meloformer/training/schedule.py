"""Learning rate as a pure function of the step: nothing to save, nothing to lose on resume."""

import math
from dataclasses import dataclass

from meloformer.errors import ConfigError

LONGEST_UNGIVEN_WARMUP_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, then a cosine.

    Args:
        learning_rate: the highest rate, reached at the end of the warm-up.
        warmup_steps: optimizer steps of linear rise; None takes a share of the run (below).
        min_learning_rate_ratio: last rate over highest rate.
    """

    learning_rate: float = 6e-4
    warmup_steps: int | None = None
    min_learning_rate_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"--learning_rate {self.learning_rate}: allowed: above 0")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"--warmup_steps {self.warmup_steps}: allowed: 0 or more")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ConfigError(
                f"--min_learning_rate_ratio {self.min_learning_rate_ratio}: allowed: 0 to 1"
            )


def resolve_warmup_steps(num_steps: int, config: ScheduleConfig) -> int:
    """Steps of the linear rise.

    Raises:
        ConfigError: the wished warm-up is longer than the run.
    """
    if config.warmup_steps is None:
        return min(num_steps // 10, LONGEST_UNGIVEN_WARMUP_STEPS)
    if config.warmup_steps > num_steps:
        raise ConfigError(
            f"--warmup_steps {config.warmup_steps} of a run of {num_steps} steps; "
            f"allowed: 0 to {num_steps}"
        )
    return config.warmup_steps


def learning_rate(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Rate of an optimizer step.

    Args:
        step: 1 .. num_steps.
        num_steps: optimizer steps of the whole run, over all restarts.
        config: shape and height of the curve.

    >>> config = ScheduleConfig(learning_rate=1.0, warmup_steps=10, min_learning_rate_ratio=0.1)
    >>> [round(learning_rate(step, 100, config), 3) for step in (1, 10, 55, 100)]
    [0.1, 1.0, 0.55, 0.1]

    Source: Loshchilov & Hutter 2017 (SGDR), one cycle, with linear warm-up.
    """
    warmup_steps = resolve_warmup_steps(num_steps, config)
    if step <= warmup_steps:
        return config.learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    lowest = config.min_learning_rate_ratio
    return config.learning_rate * (lowest + (1 - lowest) * cosine)
