"""Streams: the plan of one rank as batches, made by data workers in the order of the plan."""

from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.data_workers import DATA_TIMEOUT, load
from meloformer.batches.phases import BatchShape, Phase, PhaseConfig, phase_at
from meloformer.batches.plan import Cursor, PlanConfig, Step, iterate_steps, plan_fingerprint
from meloformer.batches.share import MicroBatchSpec, StepFacts, micro_batches, step_facts
from meloformer.batches.short_step import short_step
from meloformer.batches.validation_rows import validation_rows
from meloformer.batches.windows import check_bars_fit
from meloformer.errors import BatchError


class TrainStream:
    """Steps of one rank, each a list of its micro-batches, epoch after epoch without end.

    The main process walks the plan and hands specs to workers, so batches come in the order of
    the plan with any number of them, and `cursor` counts what was handed out, not what was
    prefetched.

    Args:
        collator: makes the batches; holds the index of the training pieces.
        config: the plan.
        phases: micro-batch and workers by step.
        rank: 0..world_size - 1.
        world_size: ranks of the run.
        state: what `state()` returned after the step to go on from; None starts at the beginning.
        step: optimizer steps that are done.
        pin_memory: for batches that go to CUDA.
        timeout_seconds: longest wait for a batch; see `load`.

    Attributes:
        cursor: place after the last step that was handed out.
        step: number of that step, from 1; 0 before the first.
        facts: what it amounts to over all ranks; None before the first.
        planned: its rows over all ranks; None before the first.

    Raises:
        BatchError: no pieces, a bar longer than a row, or a state of another plan.
    """

    def __init__(
        self,
        collator: Collator,
        config: PlanConfig,
        phases: PhaseConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        state: dict[str, Any] | None = None,
        step: int = 0,
        pin_memory: bool = False,
        timeout_seconds: float = DATA_TIMEOUT,
    ) -> None:
        check_bars_fit(collator.index, config.max_seq_len)
        self._fingerprint = plan_fingerprint(collator.index, config)
        if state is not None and state.get("plan") != self._fingerprint:
            raise BatchError(
                f"data cursor of plan {state.get('plan')!r}, this run's plan is "
                f"{self._fingerprint!r}; resume with the same shards, --seed, --max_seq_len, "
                "--collate and rows per optimizer step"
            )
        self.cursor = Cursor() if state is None else Cursor.from_json(state["cursor"])
        self.step = step
        self.facts: StepFacts | None = None
        self.planned: Step | None = None
        self._collator, self._config, self._phases = collator, config, phases
        self._rank, self._world_size = rank, world_size
        self._pin_memory, self._timeout_seconds = pin_memory, timeout_seconds
        self._batches: Iterator[Batch] | None = None
        # Steps that are on their way through the workers.
        self._planned: deque[tuple[Step, StepFacts, int]] = deque()

    @property
    def phase(self) -> Phase:
        """Phase of the step that was handed out last; of the first one before it."""
        return phase_at(max(self.step, 1), self._phases)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint: the cursor, and the plan that it belongs to."""
        return {"plan": self._fingerprint, "cursor": self.cursor.to_json()}

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> list[Batch]:
        next_phase = phase_at(self.step + 1, self._phases)
        if self._batches is None or next_phase != phase_at(self.step, self._phases):
            self.close()
            specs = self._specs(next_phase)
            self._batches = load(
                specs,
                self._collator,
                next_phase.num_workers,
                self._pin_memory,
                self._timeout_seconds,
            )
        # The first batch comes before its step is looked at: only then has the plan got there.
        batches = [next(self._batches)]
        planned, facts, num_batches = self._planned.popleft()
        batches += [next(self._batches) for _ in range(num_batches - 1)]
        self.planned, self.facts = planned, facts
        self.cursor, self.step = planned.cursor_after, self.step + 1
        return batches

    def piece_keys(self) -> list[list[list[str]]]:
        """Keys of the last step's pieces: of every micro-step, of every rank, row after row."""
        assert self.planned is not None
        rows = self.phase.micro_batch_rows
        of_ranks = [
            micro_batches(self.planned, rank, self._world_size, rows)
            for rank in range(self._world_size)
        ]
        key = self._collator.index.key
        return [
            [[key(window.piece) for row in spec.rows for window in row] for spec in of_step]
            for of_step in zip(*of_ranks, strict=True)
        ]

    def short_step(self, shape: BatchShape, num_micro_steps: int) -> list[list[MicroBatchSpec]]:
        """The next step in small, see `short_step`; empty where no epoch follows."""
        steps = iterate_steps(self._collator.index, self._config, self.cursor)
        step = next(steps, None)
        if step is None:
            return []
        return short_step(self._collator.index, step, shape, self._world_size, num_micro_steps)

    def collate(self, spec: MicroBatchSpec) -> Batch:
        """Make one batch here and now; the stream stays where it is."""
        return self._collator(spec)

    def close(self) -> None:
        """Stop the workers; the next step starts new ones."""
        self._batches = None
        self._planned.clear()

    def _specs(self, phase: Phase) -> Iterator[MicroBatchSpec]:
        """The rank's part of every step from the cursor to the end of the phase."""
        cursor = self.cursor
        numbers = count(self.step + 1)
        while True:
            epoch = cursor.epoch
            for step in iterate_steps(self._collator.index, self._config, cursor):
                if phase_at(next(numbers), self._phases) != phase:
                    return
                cursor = step.cursor_after
                specs = micro_batches(step, self._rank, self._world_size, phase.micro_batch_rows)
                facts = step_facts(step, self._world_size, phase.micro_batch_rows)
                self._planned.append((step, facts, len(specs)))
                yield from specs
            # An epoch of a mixture may end in shards of which it takes nothing.
            cursor = Cursor(epoch=epoch + 1)


class ValidationStream:
    """All pieces of a split once, in a fixed order, shared out over the ranks.

    Args:
        collator: makes the batches; holds the index of the pieces.
        config: row lengths; windows are whole pieces, or cut as in bucket mode, in either mode.
        rank: 0..world_size - 1.
        world_size: ranks of the run; every rank gets the same number of batches.
        micro_batch_rows: rows of each batch.
        num_workers: data workers.
        max_rows: look at that many rows only, spread evenly, the same ones every time.
        pin_memory: for batches that go to CUDA.
        timeout_seconds: longest wait for a batch; see `load`.

    Raises:
        BatchError: no pieces, or a bar longer than a row.
    """

    def __init__(
        self,
        collator: Collator,
        config: PlanConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_rows: int = 1,
        num_workers: int = 0,
        max_rows: int | None = None,
        pin_memory: bool = False,
        timeout_seconds: float = DATA_TIMEOUT,
    ) -> None:
        rows = validation_rows(collator.index, config, max_rows)
        step = Step(epoch=0, rows=tuple(rows), cursor_after=Cursor())
        self.facts = step_facts(step, world_size, micro_batch_rows)
        self._specs = micro_batches(step, rank, world_size, micro_batch_rows)
        self._collator, self._num_workers, self._pin_memory = collator, num_workers, pin_memory
        self._timeout_seconds = timeout_seconds

    def __len__(self) -> int:
        return len(self._specs)

    def __iter__(self) -> Iterator[Batch]:
        return load(
            self._specs,
            self._collator,
            self._num_workers,
            self._pin_memory,
            self._timeout_seconds,
        )
