"""One rank of test_gradients.py: one global batch cut in several ways, against plain autograd.

    torchrun --nproc_per_node N tests/training/gradient_worker.py FOLDER

The first rank writes what it measured to FOLDER/<N>.json.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from meloformer.batches.batch import IGNORE_INDEX  # noqa: E402
from meloformer.model.attention import build_plan  # noqa: E402
from meloformer.model.masks import Layout, rule_of  # noqa: E402
from meloformer.model.museformer import MuseFormer  # noqa: E402
from meloformer.training.ds_config import (  # noqa: E402
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.engine import Engine  # noqa: E402
from meloformer.training.loss import step_loss  # noqa: E402
from meloformer.training.optimizer import OptimizerConfig  # noqa: E402
from meloformer.training.ranks import Ranks, start_ranks  # noqa: E402
from tests.layouts import as_torch, random_layout, tiny_config  # noqa: E402

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
    """Mean over all targets, one backward, one process, without an engine."""
    ids, targets, layout = global_batch()
    logits = model(ids, layout, build_plan(layout, RULE))
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


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
        part = Layout(**{name: label[rows] for name, label in vars(layout).items()})
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


def main(folder: Path) -> None:
    ranks = start_ranks("cpu")
    model = tiny_model()
    expected = plain_gradient(copy.deepcopy(model))
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
        settings = load_ds_config(ROOT / "ds_configs/zero2.json")
        ds_config = resolve_ds_config(settings, run, source="zero2.json")
        return Engine(tiny_model(), ranks, ds_config, OptimizerConfig())

    engine = build_engine()
    measured: dict = {"errors": {}, "norm_errors": {}}
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
    if ranks.is_first:
        (folder / f"{ranks.world_size}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
