"""One model in motion for a bench: its engine, its stream, and what each step took."""

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.phases import BatchShape, PhaseConfig
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig
from meloformer.batches.stream import TrainStream
from meloformer.benchmarks.alternation import (
    num_compiled,
    synchronise,
)
from meloformer.benchmarks.bench_models import build_model, num_graphs, open_rate
from meloformer.benchmarks.dense_kernels import Kernel
from meloformer.model.attention import build_plan, causal_plan
from meloformer.model.config import Checkpointing, MuseFormerConfig
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import BLOCK_SIZE, Rule, num_summaries, rule_of
from meloformer.training.cards import peak_flops
from meloformer.training.engine import Engine
from meloformer.training.graphs import Shapes
from meloformer.training.loss import step_loss
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.prepare import backend_of
from meloformer.training.ranks import Ranks
from meloformer.training.step import Clock, StepCounts, count_step
from meloformer.training.work import PairRate, PairRates, step_flops

_WARM_UP_STEPS = 2
# Low enough to begin with: a bench has no schedule.
_LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What all candidates share.

    Args:
        index: training pieces.
        max_seq_len: T; rows are packed full, so that there is one shape.
        batch_size: rows of a micro-step.
        accumulation: micro-steps of a step.
        num_workers: data processes of each candidate.
        ds_config: as `resolve_ds_config` returns it.
        ranks: this process.
        checkpointing: what the backward pass computes again.
        precision: dtype of the attention call; None keeps the model's.
        block_size: of the block lists.
        fuse: whether pointwise parts are compiled, the twin's too.
    """

    index: PieceIndex
    max_seq_len: int
    batch_size: int
    accumulation: int
    num_workers: int
    ds_config: dict[str, Any]
    ranks: Ranks
    checkpointing: Checkpointing = "none"
    precision: torch.dtype | None = None
    block_size: int = BLOCK_SIZE
    fuse: bool = False

    @property
    def shape(self) -> BatchShape:
        """Of every micro-batch."""
        return BatchShape(self.batch_size, self.max_seq_len, num_summaries(self.max_seq_len))


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A candidate.

    Args:
        name: for tables.
        config: the model; without summaries it is the dense twin, under plain causal attention.
        kernel: the context that chooses the twin's attention kernel; None leaves it to torch.
    """

    name: str
    config: MuseFormerConfig
    kernel: Kernel | None = None

    @property
    def rule(self) -> Rule:
        """Its head groups."""
        return rule_of(self.config.rule)

    @property
    def is_twin(self) -> bool:
        """Whether it is the dense side."""
        return not self.config.summaries

    def num_graphs(self, settings: StepSettings) -> int:
        """Graphs that it may compile; there is one shape, and no validation."""
        shapes, backend = (
            Shapes(train=(settings.shape,), score=()),
            backend_of(settings.ranks.device),
        )
        return num_graphs(self.config, shapes, backend, fuse=settings.fuse)


@dataclass
class Stepper:
    """A candidate in motion; steps are counted from when it is built."""

    settings: StepSettings
    trainee: Trainee
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    graphs: int = 0
    memory: int | None = None
    first_seconds: float = 0.0

    def __post_init__(self) -> None:
        settings, ranks = self.settings, self.settings.ranks
        self._backend = backend_of(ranks.device)
        before = _allocated(ranks.device)
        model = build_model(
            self.trainee.config, fuse=settings.fuse, checkpointing=settings.checkpointing
        )
        self.engine = Engine(model, ranks, settings.ds_config, OptimizerConfig())
        self.engine.set_learning_rate(_LEARNING_RATE)
        is_sparse = self._backend == "flex" and not self.trainee.is_twin
        self.stream = TrainStream(
            Collator(
                index=settings.index,
                blocks_rule=self.trainee.rule if is_sparse else None,
                block_size=settings.block_size,
                open_summary_rate=open_rate(self.trainee.config),
            ),
            PlanConfig(
                max_seq_len=settings.max_seq_len,
                collate="pack",
                global_batch=settings.batch_size * settings.accumulation * ranks.world_size,
            ),
            PhaseConfig(
                phases="off",
                micro_batch_rows=settings.batch_size,
                num_workers=settings.num_workers,
            ),
            rank=ranks.rank,
            world_size=ranks.world_size,
            pin_memory=ranks.device.type == "cuda",
        )
        self.last: tuple[list[Batch], StepCounts] | None = None
        try:
            self._warm_up(before)
        except BaseException:
            # Nobody else knows of its data workers yet.
            self.close()
            raise

    def _warm_up(self, allocated_before: int) -> None:
        """Compile, let the optimizer make its state, and see what a step takes."""
        device = self.settings.ranks.device
        began = time.perf_counter()
        self.step()
        self.first_seconds = time.perf_counter() - began
        for _ in range(_WARM_UP_STEPS - 1):
            at_start = _allocated(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            self.step()
            if device.type == "cuda":
                # The others' weights and states lie beside: this one's alone, and its step.
                of_step = torch.cuda.max_memory_allocated(device) - at_start
                self.memory = at_start - allocated_before + of_step
        for record in (self.seconds, self.rates, self.waits, self.losses):
            record.clear()

    def step(self) -> None:
        """One optimizer step."""
        ranks, engine, clock = self.settings.ranks, self.engine, Clock()
        compiled = num_compiled()
        began = time.perf_counter()
        micro_batches = clock.wait_for(self.stream)
        counts = count_step(micro_batches, clock.wait_seconds, ranks)
        losses = []
        with self._kernel():
            for batch in (batch.to(ranks.device) for batch in micro_batches):
                share = step_loss(
                    self._predict(batch),
                    batch.targets_BT,
                    counts.targets,
                    ranks.world_size,
                    fuse=self.settings.fuse,
                )
                losses.append(engine.backward(share))
        loss = ranks.mean_of_sums(losses)
        engine.grad_norm()
        engine.update()
        synchronise(ranks.device)
        seconds = time.perf_counter() - began
        self.seconds.append(seconds)
        self.rates.append(counts.targets / seconds)
        self.waits.append(counts.wait_seconds)
        self.losses.append(loss)
        self.graphs += num_compiled() - compiled
        self.last = micro_batches, counts

    def close(self) -> None:
        """Stop the data workers."""
        self.stream.close()

    def flops(self) -> float:
        """Operations of the last step: padding and masked pairs left out."""
        assert self.last is not None
        micro_batches, counts = self.last
        if self.trainee.is_twin:
            # Plain causal attention knows neither pieces nor padding.
            pairs = counts.positions * (self.settings.max_seq_len + 1) / 2
            rate = PairRate(update=pairs / counts.tokens, summarize=0)
        else:
            rate = PairRates(self.trainee.rule).of_step(micro_batches)
        return step_flops(self.trainee.config, counts, rate)

    def figures(self) -> dict[str, Any]:
        """What the steps since the warm-up amount to; None where the device says nothing."""
        ranks = self.settings.ranks
        seconds, flops = statistics.median(self.seconds), self.flops()
        peak = peak_flops(ranks.device)
        floor = None if peak is None else flops / (peak * ranks.world_size)
        return {
            "name": self.trainee.name,
            "kernel": "causal" if self.trainee.is_twin else self._backend,
            "step_s": seconds,
            "spread": (max(self.seconds) - min(self.seconds)) / seconds,
            "tokens_per_second": statistics.median(self.rates),
            "flops": flops,
            "mfu": None if floor is None else floor / seconds,
            "floor_s": floor,
            "memory": self.memory,
            "data_wait": sum(self.waits) / sum(self.seconds),
            "graphs": self.graphs,
            "graphs_declared": self.trainee.num_graphs(self.settings),
            "first_seconds": self.first_seconds,
            "last_loss": self.losses[-1],
        }

    def _kernel(self) -> AbstractContextManager[None]:
        return self.trainee.kernel() if self.trainee.kernel else nullcontext()

    def _predict(self, batch: Batch) -> Tensor:
        precision = self.settings.precision
        if self.trainee.is_twin:
            layout, plan = batch.layout.without_summaries(), causal_plan(precision)
        else:
            layout = batch.layout
            plan = build_plan(layout, self.trainee.rule, self._backend, batch.blocks, precision)
        return self.engine(batch.ids_BT, layout, plan, NoisedOwn.of(batch.open_seeds))


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
