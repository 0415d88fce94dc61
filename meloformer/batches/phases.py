"""Phases: a run starts with small micro-batches and few workers, and says why early if it fails.

Phases change how a step is computed, never which rows it holds, and follow from the number of the
step alone, so that a resumed run is in the right one.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from meloformer.batches.plan import PlanConfig
from meloformer.errors import ConfigError
from meloformer.model.masks import num_summaries


class Phase(NamedTuple):
    """How steps are computed: number 1, 2 or 3, rows per rank and micro-step, data workers."""

    number: int
    micro_batch_rows: int
    num_workers: int


class BatchShape(NamedTuple):
    """B, T and S of a micro-batch."""

    rows: int
    tokens: int
    summaries: int


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """When the phases change.

    Args:
        phases: off is the last phase from the first step on.
        micro_batch_rows: rows per rank and micro-step of the last phase.
        num_workers: data workers of a rank after the first phase.
        first_until: last step of the first phase: one row, no workers.
        second_until: last step of the second phase: one row, all workers.
    """

    phases: Literal["on", "off"] = "on"
    micro_batch_rows: int = 6
    num_workers: int = 8
    first_until: int = 10
    second_until: int = 100

    def __post_init__(self) -> None:
        if self.micro_batch_rows < 1:
            raise ConfigError(f"--batch_size {self.micro_batch_rows}: allowed 1 or more")
        if self.num_workers < 0:
            raise ConfigError(f"--num_workers {self.num_workers}: allowed 0 or more")
        if not 0 <= self.first_until <= self.second_until:
            raise ConfigError(
                f"phases end after steps {self.first_until} and {self.second_until}: "
                "allowed 0 <= first <= second"
            )


def phase_at(step: int, config: PhaseConfig) -> Phase:
    """Phase of an optimizer step, counted from 1 over the whole run.

    >>> [phase_at(step, PhaseConfig()).number for step in (1, 10, 11, 100, 101)]
    [1, 1, 2, 2, 3]
    """
    if config.phases == "on":
        if step <= config.first_until:
            return Phase(1, 1, 0)
        if step <= config.second_until:
            return Phase(2, 1, config.num_workers)
    return Phase(3, config.micro_batch_rows, config.num_workers)


def batch_shapes(plan: PlanConfig, config: PhaseConfig) -> list[BatchShape]:
    """Every shape that a run can meet: what has to be compiled before its first step."""
    rows = {phase_at(step, config).micro_batch_rows for step in (1, config.second_until + 1)}
    return [
        BatchShape(num_rows, length, num_summaries(length))
        for num_rows in sorted(rows)
        for length in plan.row_lengths
    ]
