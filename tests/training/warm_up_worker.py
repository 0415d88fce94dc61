"""One rank of test_graphs.py: each rank warms up in another order, then all take a step.

    torchrun --nproc_per_node 2 tests/training/warm_up_worker.py FOLDER STAGE

Rank r writes FOLDER/<r>.json: the lengths in its order, and whether the weights are those of a step
without a warm-up.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from meloformer.batches.batch import Batch  # noqa: E402
from meloformer.batches.collate import collate_rows  # noqa: E402
from meloformer.batches.phases import BatchShape  # noqa: E402
from meloformer.model.attention import build_plan  # noqa: E402
from meloformer.model.masks import RULES  # noqa: E402
from meloformer.model.museformer import MuseFormer  # noqa: E402
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config  # noqa: E402
from meloformer.training.engine import Engine  # noqa: E402
from meloformer.training.graphs import Shapes, warm_up  # noqa: E402
from meloformer.training.optimizer import OptimizerConfig  # noqa: E402
from meloformer.training.ranks import start_ranks  # noqa: E402
from tests.layouts import tiny_config  # noqa: E402

SHAPES = tuple(BatchShape(1, 128 * n, 128) for n in range(1, 5))


def weights_after_a_step(stage: str, lengths: list[int] | None) -> dict[str, Tensor]:
    """Weights after a step; given a list, a warm-up comes first, which notes its lengths there."""
    ranks = start_ranks("cpu")
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=2, gradient_clipping=1.0, device="cpu"
    )
    settings = load_ds_config(ROOT / f"ds_configs/{stage}.json")
    ds_config = resolve_ds_config(settings, run, source=stage)
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2, width=32, ffn_width=64))
    engine = Engine(model, ranks, ds_config, OptimizerConfig())

    def predict(batch: Batch) -> Tensor:
        if lengths is not None:
            lengths.append(batch.ids_BT.shape[1])
        return engine(batch.ids_BT, batch.layout, build_plan(batch.layout, RULES["halves"]))

    if lengths is not None:
        warm_up(engine, predict, Shapes(train=SHAPES, score=SHAPES), None)
    engine.set_learning_rate(1e-2)
    engine.backward(predict(collate_rows([[]], 128)).float().square().mean())
    engine.update()
    return engine.full_weights()


def main(folder: str, stage: str) -> None:
    """Compare."""
    cold = weights_after_a_step(stage, None)
    lengths: list[int] = []
    warm = weights_after_a_step(stage, lengths)
    same = all(torch.equal(warm[name], cold[name]) for name in cold)
    path = Path(folder, f"{start_ranks('cpu').rank}.json")
    path.write_text(json.dumps({"lengths": lengths, "same": same}))


if __name__ == "__main__":
    main(*sys.argv[1:])
