from pathlib import Path

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.phases import PhaseConfig
from meloformer.batches.plan import PlanConfig
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES
from meloformer.model.museformer import MuseFormer
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.engine import Engine
from meloformer.training.graphs import declare_shapes, limit_graphs, warm_up
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.ranks import start_ranks
from tests.layouts import tiny_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("rule", "per_shape"), [("museformer", 2), ("halves", 3)])
def test_packed_training_takes_two_graphs_and_three_for_halves(rule: str, per_shape: int) -> None:
    shapes = declare_shapes(PlanConfig(collate="pack"), PhaseConfig(phases="off"))
    assert len(shapes.train) == len(shapes.score) == 1
    assert shapes.num_graphs(RULES[rule]) == 2 * per_shape, "as many again for validation"


def test_buckets_and_phases_declare_every_length_at_both_micro_batches() -> None:
    shapes = declare_shapes(PlanConfig(max_seq_len=2048), PhaseConfig(phases="on"))
    assert len(shapes.train) == 2 * 4
    assert {shape.rows for shape in shapes.score} == {6}


def test_every_shape_belongs_to_one_number_of_rows() -> None:
    shapes = declare_shapes(PlanConfig(max_seq_len=2048), PhaseConfig(phases="on"))
    parts = [shapes.of_rows(rows) for rows in (1, 6)]
    assert parts[0].train + parts[1].train == shapes.train
    assert sum(part.num_graphs(RULES["halves"]) for part in parts) == shapes.num_graphs(
        RULES["halves"]
    )


def weights_after_a_step(*, is_warm: bool) -> dict[str, torch.Tensor]:
    ranks = start_ranks("cpu")
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=1, gradient_clipping=1.0, device="cpu"
    )
    settings = load_ds_config(ROOT / "ds_configs/zero2.json")
    ds_config = resolve_ds_config(settings, run, source="zero2.json")
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2, width=32, ffn_width=64))
    engine = Engine(model, ranks, ds_config, OptimizerConfig())

    def predict(batch: Batch) -> torch.Tensor:
        return engine(batch.ids_BT, batch.layout, build_plan(batch.layout, RULES["halves"]))

    if is_warm:
        plan = PlanConfig(max_seq_len=256, bucket_multiple=128)
        shapes = declare_shapes(plan, PhaseConfig(micro_batch_rows=2))
        warm_up(engine, predict, shapes, None)
    engine.set_learning_rate(1e-2)
    engine.backward(predict(collate_rows([[]], 128)).float().square().mean())
    engine.update()
    return engine.full_weights()


def test_a_warm_up_leaves_no_trace_in_the_steps_after_it() -> None:
    warm, cold = weights_after_a_step(is_warm=True), weights_after_a_step(is_warm=False)
    assert all(torch.equal(warm[name], cold[name]) for name in cold)


def test_one_graph_more_than_declared_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"):
        monkeypatch.setattr(config, name, getattr(config, name))
    torch._dynamo.reset()
    double = torch.compile(lambda x: x * 2, dynamic=False, fullgraph=True, backend="eager")
    double(torch.ones(7))  # as the probe of the precision does before
    limit_graphs(2)
    for length in (2, 3):
        double(torch.ones(length))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with pytest.raises(Exception, match="recompile_limit"):
        double(torch.ones(9))
    torch._dynamo.reset()
