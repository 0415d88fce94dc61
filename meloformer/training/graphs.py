"""Compiled attention graphs: their number is known before the first step, and never exceeded.

One more than declared means that something captures a value which changes from batch to batch,
and then every batch compiles anew: a run 100 times too slow, and nothing else to see.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.phases import BatchShape, PhaseConfig, batch_shapes
from meloformer.batches.plan import PlanConfig
from meloformer.errors import TrainingError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.fused import GRAPHS_PER_ROWS
from meloformer.model.masks import BLOCK_SIZE, Rule, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.training.loss import step_loss
from meloformer.training.ranks import Ranks, ranks_on_host

Item = TypeVar("Item")

# Around the forward and backward pass of a batch: looks at it, and at what went wrong with it.
Watch = Callable[[Batch], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Every shape of batch that a run can meet.

    Args:
        train: with gradients.
        score: without, in validation.
    """

    train: tuple[BatchShape, ...]
    score: tuple[BatchShape, ...]

    def of_rows(self, rows: int) -> "Shapes":
        """Those of micro-batches of so many rows."""
        return Shapes(
            train=tuple(shape for shape in self.train if shape.rows == rows),
            score=tuple(shape for shape in self.score if shape.rows == rows),
        )

    def num_graphs(
        self, rule: Rule, *, summaries: bool = True, opened: bool = False, fuse: bool = False
    ) -> int:
        """One graph for SUMMARIZE and one per head group for UPDATE, per shape and mode.

        UPDATE with open summaries is another call with as many graphs, in training alone. Compiled
        pointwise parts come on top, per number of rows in training.

        Computing layers again in the backward pass adds none: it calls the graphs of training.

        Args:
            rule: head groups.
            summaries: whether the model has them; without, there is no SUMMARIZE.
            opened: whether it trains with open ones.
            fuse: whether the pointwise parts are compiled.
        """
        pointwise = GRAPHS_PER_ROWS * len({shape.rows for shape in self.train}) if fuse else 0
        attention = (len(self.train) + len(self.score)) * (summaries + len(rule))
        return attention + opened * len(self.train) * len(rule) + pointwise

    @property
    def largest(self) -> BatchShape:
        """The one that needs most memory."""
        return max(self.train, key=lambda shape: (shape.rows * shape.tokens, shape.tokens))

    @property
    def smallest(self) -> BatchShape:
        """The one that needs least."""
        return min(self.train, key=lambda shape: (shape.rows * shape.tokens, shape.tokens))


def declare_shapes(plan: PlanConfig, phases: PhaseConfig) -> Shapes:
    """Shapes of training and validation."""
    train = batch_shapes(plan, phases)
    return Shapes(
        train=tuple(train),
        score=tuple(shape for shape in train if shape.rows == phases.micro_batch_rows),
    )


def limit_graphs(num_graphs: int) -> None:
    """Make torch fail at one graph more, instead of running attention uncompiled.

    What was compiled before is forgotten (the probe of the attention precision, an earlier run in
    this process): neither the count nor the limit knows of it.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters["stats"]["unique_graphs"] = 0
    config = torch._dynamo.config
    config.recompile_limit = num_graphs
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, config.recompile_limit
    )
    config.fail_on_recompile_limit_hit = True


class GraphBudget:
    """What may be compiled, and what has been.

    Only graphs that come while a batch is watched count: a callback that makes music compiles for
    itself.

    Args:
        shapes: all that the run can meet.
        num_graphs: that they may compile; None where nothing is compiled.

    Attributes:
        num_compiled: graphs so far.
    """

    def __init__(self, shapes: Shapes, num_graphs: int | None) -> None:
        self.shapes, self.num_graphs = shapes, num_graphs
        self.num_compiled = 0

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Hold the forward and backward pass of a batch to what was declared.

        Raises:
            TrainingError: a shape that was not declared, before anything is compiled for it; or
                one graph more than declared.
        """
        mode = "training" if torch.is_grad_enabled() else "validation"
        declared = self.shapes.train if torch.is_grad_enabled() else self.shapes.score
        rows, tokens = batch.ids_BT.shape
        if (rows, tokens) not in {(shape.rows, shape.tokens) for shape in declared}:
            raise TrainingError(
                f"found a batch of {rows} x {tokens:,} tokens in {mode}; allowed: what was "
                f"declared before the first step, {_listed(declared)}; go on with the flags that "
                "the run was started with (--resume auto), and if it comes again, report it with "
                "the run's run.json"
            )
        before = _num_compiled()
        try:
            yield
        except FailOnRecompileLimitHit as error:
            self.num_compiled += _num_compiled() - before
            raise self._exceeded(rows, tokens, mode) from error
        self.num_compiled += _num_compiled() - before
        if self.num_graphs is not None and self.num_compiled > self.num_graphs:
            raise self._exceeded(rows, tokens, mode)

    def _exceeded(self, rows: int, tokens: int, mode: str) -> TrainingError:
        shapes = {"training": self.shapes.train, "validation": self.shapes.score}
        listed = ", ".join(f"{name} {_listed(declared)}" for name, declared in shapes.items())
        return TrainingError(
            f"a batch of {rows} x {tokens:,} tokens in {mode} wants one more graph than the "
            f"{self.num_graphs} declared ({self.num_compiled} compiled; {listed}): a value that "
            "changes from batch to batch is compiled in, and each batch would compile anew; start "
            "with TORCH_LOGS=recompiles to see which"
        )


def declare_graphs(
    plan: PlanConfig,
    phases: PhaseConfig,
    config: MuseFormerConfig,
    *,
    model: nn.Module,
    fuse: bool,
    is_compiled: bool,
) -> GraphBudget:
    """The budget of a run; where attention is compiled, torch is held to it from here on.

    Args:
        plan: of the rows.
        phases: of the micro-batches.
        config: settings of the model.
        model: whose frozen layers compute as in validation.
        fuse: whether the pointwise parts are compiled.
        is_compiled: whether attention is.
    """
    shapes = declare_shapes(plan, phases)
    assert isinstance(model, MuseFormer)
    if model.num_frozen_layers:
        shapes = replace(shapes, score=shapes.train)
    if not is_compiled:
        return GraphBudget(shapes, None)
    num_graphs = shapes.num_graphs(
        rule_of(config.rule),
        summaries=config.summaries,
        opened=config.num_open_layers > 0,
        fuse=fuse,
    )
    if fuse and model.is_partly_frozen:
        # The norms of queries and keys, where some are frozen and some are trained.
        num_graphs += 2 * len({shape.rows for shape in shapes.train})
    limit_graphs(num_graphs)
    return GraphBudget(shapes, num_graphs)


class Trainee(Protocol):
    """What `warm_up` needs of an engine."""

    ranks: Ranks

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of one micro-batch."""

    def drop_gradients(self) -> None:
        """Forget it."""


def warm_up(
    engine: Trainee,
    predict: Callable[[Batch], Tensor],
    shapes: Shapes,
    blocks_rule: Rule | None,
    *,
    block_size: int = BLOCK_SIZE,
    opened: bool = False,
    fuse: bool = False,
    watch: Watch = lambda batch: nullcontext(),
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Compile shapes on all ranks before a step; leaves no trace in the weights.

    Compiling as they come would stop one step after another for minutes, and a run that lacks
    memory for its longest rows would say so only when the first of them comes.

    Each rank of a host begins with other shapes, to find in the cache what the others have compiled
    by then. What ranks say to each other in a backward pass depends on the model and not on the
    shape, and all of them run as many.

    Args:
        engine: the model, between two steps; its gradients are dropped.
        predict: logits of a batch.
        shapes: what to compile.
        blocks_rule: rule to build block lists for; None builds none.
        block_size: tokens along each side of a block.
        opened: whether batches of training can have open summaries.
        fuse: whether the loss is compiled too.
        watch: held around each batch.
        is_over: asked before each batch, as often on all ranks; the rest is left out.
    """
    ranks = engine.ranks
    turn = ranks.local_rank, ranks_on_host()
    for shape in in_turn(shapes.train, *turn):
        if is_over():
            return
        batch = padding(shape, blocks_rule, block_size, opened=opened).to(ranks.device)
        with watch(batch):
            loss = step_loss(predict(batch), batch.targets_BT, 1, ranks.world_size, fuse=fuse)
            engine.backward(loss)
        engine.drop_gradients()
    for shape in in_turn(shapes.score, *turn):
        if is_over():
            return
        batch = padding(shape, blocks_rule, block_size).to(ranks.device)
        with torch.no_grad(), watch(batch):
            predict(batch)


def in_turn(items: Sequence[Item], rank: int, num_ranks: int) -> list[Item]:
    """The same, begun by each rank at another place.

    >>> in_turn([0, 1, 2, 3], 1, 2)
    [2, 3, 0, 1]
    """
    start = len(items) * (rank % num_ranks) // num_ranks
    return [*items[start:], *items[:start]]


def padding(
    shape: BatchShape,
    blocks_rule: Rule | None,
    block_size: int = BLOCK_SIZE,
    *,
    opened: bool = False,
) -> Batch:
    """A batch of a shape without a single token: it computes as any other and weighs nothing.

    Args:
        shape: of the batch.
        blocks_rule: rule to build block lists for; None builds none.
        block_size: tokens along each side of a block.
        opened: with room for open summaries, as batches of a model that trains with them.
    """
    rows: list[list[np.ndarray]] = [[] for _ in range(shape.rows)]
    seeds = [None] * shape.rows if opened else None
    return collate_rows(rows, shape.tokens, blocks_rule, block_size, seeds)


def _num_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _listed(shapes: tuple[BatchShape, ...]) -> str:
    """Lengths by number of rows: "6 x 512, 1,024 tokens"."""
    lengths: dict[int, list[str]] = {}
    for shape in shapes:
        lengths.setdefault(shape.rows, []).append(f"{shape.tokens:,}")
    return " and ".join(f"{rows} x {', '.join(found)} tokens" for rows, found in lengths.items())
