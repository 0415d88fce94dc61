"""What a run does before its first step and before that of a phase: try what is largest, compile.

Both look at shapes alone, with batches of padding: weights, optimizer, random numbers and the place
in the data stay as they are.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.phases import PhaseConfig, phase_at
from meloformer.model.masks import rule_of
from meloformer.progress import duration
from meloformer.training.compile_ahead import CompileAhead, CompileSpec
from meloformer.training.compile_cache import found_in_cache
from meloformer.training.config import ResolvedConfig
from meloformer.training.engine import Engine
from meloformer.training.graphs import GraphBudget, warm_up
from meloformer.training.out_of_memory import describe
from meloformer.training.preflight import is_cheap, try_largest
from meloformer.training.step import Clock
from meloformer.training.stopping import Stopping

# Held around the batches of a moment, which it names in messages.
WatchMoment = Callable[[str, Batch], AbstractContextManager[None]]


@dataclass(frozen=True)
class FirstStep:
    """When the first step of a start ended, and whether its code was compiled before.

    Args:
        seconds: since the session began.
        found: what of the code lay in the cache before; None where nothing is compiled.
    """

    seconds: float
    found: Literal["warm", "cold"] | None

    def facts(self) -> dict[str, float | None]:
        """For run.json."""
        return {
            "first_step_s": self.seconds,
            "cold_s": self.seconds if self.found == "cold" else None,
            "warm_s": self.seconds if self.found == "warm" else None,
        }

    def line(self) -> str:
        """For train.log."""
        words = {"cold": ", code compiled anew", "warm": ", compiled code from the cache"}
        return f"the first step ended {self.seconds:.1f} s after the start of the session" + (
            words[self.found] if self.found else ""
        )


class Warming:
    """Tries and compiles the shapes of a run before they come.

    Args:
        spec: what decides which code is compiled.
        config: of the run.
        engine: the model; its gradients are dropped.
        graphs: the declared shapes, and how many graphs they may compile.
        phases: rows of a micro-batch by step.
        clock: which does not count what is done here.
        predict: logits of a batch.
        watch: held around each batch.
        say: takes a line on what was done.
        stopping: asked between shapes.
    """

    def __init__(
        self,
        spec: CompileSpec,
        config: ResolvedConfig,
        engine: Engine,
        graphs: GraphBudget,
        phases: PhaseConfig,
        clock: Clock,
        *,
        predict: Callable[[Batch], Tensor],
        watch: WatchMoment,
        say: Callable[[str], None],
        stopping: Stopping,
    ) -> None:
        self._spec, self._config, self._engine = spec, config, engine
        self._graphs, self._phases, self._clock = graphs, phases, clock
        self._predict, self._watch, self._say = predict, watch, say
        self._stopping = stopping
        self._is_compiled = spec.backend == "flex"
        self._blocks_rule = rule_of(spec.model.rule) if self._is_compiled else None
        num_workers = config.compile_workers if self._is_compiled else 0
        self._ahead = CompileAhead(spec, num_workers, engine.ranks.local_rank, say=say)
        self._warm_rows: set[int] = set()

    def first_step(self, seconds: float) -> "FirstStep":
        """What the first step of a start took, from the beginning of the session."""
        found = None
        if self._is_compiled:
            # What processes have just put into the cache was not found there.
            found = "cold" if self._ahead.has_compiled else found_in_cache()
        return FirstStep(seconds, found)

    def rows_at(self, step: int) -> int:
        """Rows of a micro-batch of a step."""
        return phase_at(step, self._phases).micro_batch_rows

    def try_largest(self, first: int, last: int) -> None:
        """Before the first step of a start: does the largest batch fit, on every rank?

        Args:
            first: step that the start begins with.
            last: step of the run; before the first one there is nothing to try.

        Raises:
            OutOfMemoryError: it does not.
        """
        if first > last:
            return
        rows = max(self.rows_at(step) for step in (first, last))
        shape = self._graphs.shapes.of_rows(rows).largest
        if not is_cheap(self._spec.model, shape, self._engine.ranks.device):
            self._say(
                f"the largest batch, {describe(shape)}, is not tried before the first step: "
                "on a CPU that would take more than seconds"
            )
            return
        # Not beside the trial: the processes that compile take memory too.
        shapes = self._graphs.shapes.of_rows(self.rows_at(first))
        self._ahead.compile(replace(shapes, train=(shape, *shapes.train)))
        trial = try_largest(
            self._engine,
            self._predict,
            shape,
            self._blocks_rule,
            accumulates=self._config.gradient_accumulation_steps > 1
            or rows < self._config.batch_size,
            block_size=self._spec.block_size,
            opened=self._spec.model.num_open_layers > 0,
            fuse=self._spec.fuse,
            watch=lambda batch: self._watch("the trial before the first step", batch),
        )
        for line in trial.lines(self._config.memory_headroom):
            self._say(line)
        self._clock.pause()

    def warm_up(self, step: int) -> None:
        """Compile what a phase will meet before its first step; at other steps do nothing."""
        rows = self.rows_at(step)
        if not self._is_compiled or rows in self._warm_rows:
            return
        self._warm_rows.add(rows)
        shapes = self._graphs.shapes.of_rows(rows)
        began = time.perf_counter()
        self._ahead.compile(shapes)
        warm_up(
            self._engine,
            self._predict,
            shapes,
            self._blocks_rule,
            block_size=self._spec.block_size,
            opened=self._spec.model.num_open_layers > 0,
            fuse=self._spec.fuse,
            watch=lambda batch: self._watch(f"the warm-up before step {step}", batch),
            is_over=self._stopping.ask,
        )
        if self._stopping.is_agreed:
            return
        self._ahead.note_compiled(shapes)
        self._say(
            f"compiled attention for {len(shapes.train)} shapes: {self._graphs.num_compiled} "
            f"graphs of {self._graphs.num_graphs} declared, in "
            f"{duration(time.perf_counter() - began)}"
        )
        self._clock.pause()
