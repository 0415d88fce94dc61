"""Phases: a run starts with small micro-batches and few workers.

Where the rows of a step or the data workers are to blame for what goes wrong, the phase says so:
the first has neither a micro-batch of several rows nor a process besides the ranks. What memory the
full micro-batch takes is not theirs to find out: it is tried before the first step of a start.

Phases change how a step is computed, never which rows it holds, and follow from the number of the
step alone, so that a resumed run is in the right one.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from meloformer.batches.plan import PlanConfig
from meloformer.errors import ConfigError
from meloformer.model.masks import num_summaries


class Phase(NamedTuple):
    """How steps are computed: number 1, 2 or 3, rows per rank and micro-step, data workers."""

    number: int
    micro_batch_rows: int
    num_workers: int


def describe(phase: Phase) -> str:
    """A phase in words.

    >>> describe(Phase(1, 1, 0)), describe(Phase(3, 6, 8))
    ('micro-batches of 1 row, no data workers', 'micro-batches of 6 rows, 8 data workers')
    """
    rows = "1 row" if phase.micro_batch_rows == 1 else f"{phase.micro_batch_rows} rows"
    workers = "1 data worker" if phase.num_workers == 1 else f"{phase.num_workers} data workers"
    return f"micro-batches of {rows}, {workers if phase.num_workers else 'no data workers'}"


class BatchShape(NamedTuple):
    """B, T and S of a micro-batch."""

    rows: int
    tokens: int
    summaries: int


@dataclass(frozen=True, kw_only=True)
class PhaseEnds:
    """The last steps of the phases that have an end.

    Args:
        phase_1_until: last step of the first phase: micro-batches of one row, no data workers. 0
            leaves the phase out.
        phase_2_until: last step of the second phase: micro-batches of one row, all data workers.
            The last step of the first phase leaves it out.
    """

    phase_1_until: int = 10
    phase_2_until: int = 100

    def __post_init__(self) -> None:
        if self.phase_1_until < 0:
            raise ConfigError(f"--phase_1_until {self.phase_1_until}: allowed: 0 or more")
        if self.phase_2_until < self.phase_1_until:
            raise ConfigError(
                f"--phase_2_until {self.phase_2_until}: allowed: --phase_1_until "
                f"({self.phase_1_until}) or more; without phases: --phases off"
            )


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """When the phases change, and what the last one is.

    Args:
        phases: off is the last phase from the first step on.
        micro_batch_rows: rows per rank and micro-step of the last phase.
        num_workers: data workers of a rank after the first phase.
        ends: of the phases before the last.
    """

    phases: Literal["on", "off"] = "on"
    micro_batch_rows: int = 6
    num_workers: int = 8
    ends: PhaseEnds = field(default_factory=PhaseEnds)

    def __post_init__(self) -> None:
        if self.micro_batch_rows < 1:
            raise ConfigError(f"--batch_size {self.micro_batch_rows}: allowed 1 or more")
        if self.num_workers < 0:
            raise ConfigError(f"--num_workers {self.num_workers}: allowed 0 or more")

    def last_step(self, phase: Phase) -> int | None:
        """Last step of a phase; None for the last phase."""
        return {1: self.ends.phase_1_until, 2: self.ends.phase_2_until}.get(phase.number)


def phase_at(step: int, config: PhaseConfig) -> Phase:
    """Phase of an optimizer step, counted from 1 over the whole run.

    >>> [phase_at(step, PhaseConfig()).number for step in (1, 10, 11, 100, 101)]
    [1, 1, 2, 2, 3]
    """
    ends = config.ends
    if config.phases == "on" and step <= ends.phase_2_until:
        is_first = step <= ends.phase_1_until
        return Phase(1, 1, 0) if is_first else Phase(2, 1, config.num_workers)
    return Phase(3, config.micro_batch_rows, config.num_workers)


def outlook_of_phases(config: PhaseConfig, num_steps: int) -> list[str]:
    """A line for each phase that a run comes to, with its steps.

    >>> outlook_of_phases(PhaseConfig(phases="off", micro_batch_rows=2), num_steps=5)
    ['steps 1-5: micro-batches of 2 rows, 8 data workers']
    """
    lines, first = [], 1
    while first <= num_steps:
        phase = phase_at(first, config)
        end = config.last_step(phase) if config.phases == "on" else None
        last = min(end or num_steps, num_steps)
        lines.append(f"steps {first:,}-{last:,}: {describe(phase)}")
        first = last + 1
    return lines


def too_short(config: PhaseConfig, num_steps: int) -> str | None:
    """Why a run of so many steps never comes to its last phase; None if it does."""
    if phase_at(num_steps, config).number == 3:
        return None
    last = describe(phase_at(config.ends.phase_2_until + 1, config))
    return (
        f"phases: all {num_steps:,} steps come before the last phase, whose {last} begin after "
        f"--phase_2_until {config.ends.phase_2_until}; lower both ends, or --phases off"
    )


def batch_shapes(plan: PlanConfig, config: PhaseConfig) -> list[BatchShape]:
    """Every shape that a run can meet: what has to be compiled before its first step."""
    rows = {phase_at(step, config).micro_batch_rows for step in (1, config.ends.phase_2_until + 1)}
    return [
        BatchShape(num_rows, length, num_summaries(length))
        for num_rows in sorted(rows)
        for length in plan.row_lengths
    ]
