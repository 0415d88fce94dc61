"""Compiled attention graphs: their number is known before the first step, and never exceeded.

One more than declared means that something captures a value which changes from batch to batch,
and then every batch compiles anew: a run 100 times too slow, and nothing else to see.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.phases import BatchShape, PhaseConfig, batch_shapes
from meloformer.batches.plan import PlanConfig
from meloformer.model.masks import Rule
from meloformer.training.engine import Engine
from meloformer.training.loss import step_loss


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

    def num_graphs(self, rule: Rule) -> int:
        """One graph for SUMMARIZE and one per head group for UPDATE, per shape and mode."""
        return (len(self.train) + len(self.score)) * (1 + len(rule))


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


def warm_up(
    engine: Engine, predict: Callable[[Batch], Tensor], shapes: Shapes, blocks_rule: Rule | None
) -> None:
    """Compile shapes on all ranks before a step; leaves no trace in the weights.

    Compiling as they come would stop one step after another for minutes, and a run that lacks
    memory for its longest rows would say so only when the first of them comes.

    Args:
        engine: the model, between two steps; its gradients are dropped.
        predict: logits of a batch.
        shapes: what to compile.
        blocks_rule: rule to build block lists for; None builds none.
    """
    ranks = engine.ranks
    for shape in sorted(shapes.train, key=lambda shape: -shape.rows * shape.tokens):
        batch = _padding(shape, blocks_rule).to(ranks.device)
        loss = step_loss(predict(batch), batch.targets_BT, 1, ranks.world_size)
        engine.backward(loss)
        engine.drop_gradients()
    for shape in shapes.score:
        with torch.no_grad():
            predict(_padding(shape, blocks_rule).to(ranks.device))


def _padding(shape: BatchShape, blocks_rule: Rule | None) -> Batch:
    return collate_rows([[] for _ in range(shape.rows)], shape.tokens, blocks_rule)
