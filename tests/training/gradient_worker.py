"""A part of ranks_worker.py: one global batch cut in several ways, against plain autograd."""

from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.model.attention import build_plan
from meloformer.model.masks import Layout, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.training.ds_config import (
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.engine import Engine
from meloformer.training.loss import step_loss
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.ranks import Ranks
from tests.layouts import as_torch, random_layout, tiny_config

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS, SEQ_LEN, NUM_SLOTS, VOCAB_SIZE = 8, 96, 32, 97
# Two ranks have rows for half of the last one's micro-steps: what is left has no weight.
ACCUMULATIONS = (1, 4, 8)
RULE = rule_of("halves")


def tiny_model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(
        tiny_config(
            num_layers=2, width=32, ffn_width=64, vocab_size=VOCAB_SIZE, max_seq_len=SEQ_LEN
        )
    )


def global_batch() -> tuple[torch.Tensor, torch.Tensor, Layout]:
    """Ragged rows: every one has another number of targets, the last has a single one."""
    layout = as_torch(random_layout(5, rows=NUM_ROWS, length=SEQ_LEN, slots=NUM_SLOTS))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB_SIZE, (NUM_ROWS, SEQ_LEN), generator=generator)
    targets = torch.randint(VOCAB_SIZE, (NUM_ROWS, SEQ_LEN), generator=generator)
    targets[layout.piece_BT < 0] = IGNORE_INDEX
    for row in range(NUM_ROWS):
        targets[row, SEQ_LEN // (row + 1) :] = IGNORE_INDEX
    targets[-1, 1:] = IGNORE_INDEX
    return ids, targets, layout


def plain_gradient(model: MuseFormer) -> dict[str, torch.Tensor]:
    """Mean over all targets in one process, without an engine; added up in float32.

    Row by row, as bf16 rounds the gradient of a row to which others were added differently.
    """
    ids, targets, layout = global_batch()
    num_targets = int((targets != IGNORE_INDEX).sum())
    total = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for row in range(NUM_ROWS):
        part = layout.map(itemgetter(slice(row, row + 1)))
        logits = model(ids[row : row + 1], part, build_plan(part, RULE)).float()
        nats = F.cross_entropy(logits[0], targets[row], ignore_index=IGNORE_INDEX, reduction="sum")
        (nats / num_targets).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            total[name] += parameter.grad.float()
            parameter.grad = None
    return total


def shares(ranks: Ranks, accumulation: int) -> list[list[int]]:
    """Rows of each of this rank's micro-batches; -1 is a row of no weight."""
    size = -(-NUM_ROWS // (ranks.world_size * accumulation))
    slots = list(range(NUM_ROWS))
    slots += [-1] * (size * ranks.world_size * accumulation - NUM_ROWS)
    parts = [slots[i : i + size] for i in range(0, len(slots), size)]
    return [parts[step * ranks.world_size + ranks.rank] for step in range(accumulation)]


def run_backward(engine: Engine, accumulation: int, *, scale: float = 1.0) -> None:
    ids, targets, layout = global_batch()
    num_targets = int((targets != IGNORE_INDEX).sum())
    for rows in shares(engine.ranks, accumulation):
        part = layout.map(itemgetter(rows))
        wanted = targets[rows].clone()
        wanted[torch.tensor(rows) < 0] = IGNORE_INDEX
        logits = engine(ids[rows], part, build_plan(part, RULE))
        loss = step_loss(logits, wanted, num_targets, engine.ranks.world_size)
        engine.backward(loss * scale)


def train_steps(engine: Engine, scales: list[float]) -> dict[str, torch.Tensor]:
    """Steps of which those with another scale than 1 are dropped."""
    for scale in scales:
        # One rank alone goes wrong; the others must come to the same decision.
        own = scale if engine.ranks.rank == engine.ranks.world_size - 1 else 1.0
        run_backward(engine, 4, scale=own)
        norm = engine.grad_norm()
        if scale == 1.0:
            engine.set_learning_rate(1e-2)
            engine.update()
        else:
            assert scale == scale or norm == float("inf"), norm
            engine.drop_gradients()
    return engine.full_weights()


def measure(ranks: Ranks, partitioning: str, *, is_bf16: bool = False) -> dict[str, Any]:
    """Compare gradients, and the weights after dropped steps.

    Args:
        ranks: the started processes.
        partitioning: name of a ds_configs file.
        is_bf16: whether model and gradients are bf16.
    """
    model = tiny_model().to(torch.bfloat16 if is_bf16 else torch.float32)
    expected = plain_gradient(model)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    largest = max(gradient.abs().max().item() for gradient in expected.values())

    def build_engine() -> Engine:
        run = RunFacts(
            micro_batch_rows=1,
            accumulation=1,
            world_size=ranks.world_size,
            gradient_clipping=1.0,
            device="cpu",
        )
        source = f"{partitioning}.json"
        settings = load_ds_config(ROOT / "ds_configs" / source)
        settings["bf16"] = {"enabled": is_bf16}
        ds_config = resolve_ds_config(settings, run, source=source)
        return Engine(tiny_model(), ranks, ds_config, OptimizerConfig())

    engine = build_engine()
    measured: dict[str, Any] = {"errors": {}, "norm_errors": {}}
    for accumulation in ACCUMULATIONS:
        run_backward(engine, accumulation)
        measured["norm_errors"][accumulation] = abs(engine.grad_norm() / norm - 1)
        found = engine.full_gradients()
        assert found.keys() == expected.keys()
        errors = {name: (found[name] - expected[name]).abs().max().item() for name in found}
        measured["errors"][accumulation] = max(errors.values()) / largest
        engine.drop_gradients()

    undisturbed = train_steps(engine, [1.0, 1.0])
    disturbed = train_steps(build_engine(), [1.0, float("nan"), 1000.0, 1.0])
    measured["moved"] = max(
        (undisturbed[name] - parameter).abs().max().item()
        for name, parameter in model.named_parameters()
    )
    measured["dropped_steps_left_no_trace"] = all(
        torch.equal(undisturbed[name], disturbed[name]) for name in undisturbed
    )
    return measured
