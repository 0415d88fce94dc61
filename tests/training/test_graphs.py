import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from meloformer.batches.batch import Batch, map_tensors
from meloformer.batches.collate import collate_rows
from meloformer.batches.phases import BatchShape, PhaseConfig
from meloformer.batches.plan import PlanConfig
from meloformer.errors import TrainingError
from meloformer.model.attention import build_plan
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import RULES
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import VOCAB_SIZE, Kind, token_id
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.engine import Engine
from meloformer.training.graphs import (
    GraphBudget,
    Shapes,
    declare_shapes,
    limit_graphs,
    padding,
    warm_up,
)
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.ranks import start_ranks
from tests.layouts import tiny_config
from tests.training.launching import run, torchrun

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("rule", "per_shape"), [("museformer", 2), ("halves", 3)])
def test_packed_training_takes_two_graphs_and_three_for_halves(rule: str, per_shape: int) -> None:
    shapes = declare_shapes(PlanConfig(collate="pack"), PhaseConfig(phases="off"))
    assert len(shapes.train) == len(shapes.score) == 1
    assert shapes.num_graphs(RULES[rule]) == 2 * per_shape, "as many again for validation"


@pytest.mark.parametrize(("rule", "per_shape"), [("museformer", 1), ("halves", 2)])
def test_open_summaries_are_one_more_update_in_training_and_none_in_validation(
    rule: str, per_shape: int
) -> None:
    shapes = declare_shapes(PlanConfig(max_seq_len=2048), PhaseConfig(phases="on"))
    closed, opened = (shapes.num_graphs(RULES[rule], opened=opened) for opened in (False, True))
    assert opened - closed == per_shape * len(shapes.train)


def test_a_batch_of_padding_has_the_shapes_of_a_batch_with_open_summaries() -> None:
    rule, shape = RULES["halves"], BatchShape(2, 256, 128)
    ids = np.array([token_id(Kind.BAR, 0)] * 40, dtype=np.uint16)
    real = collate_rows([[ids], [ids]], shape.tokens, rule, open_seeds=[7, None])
    empty = padding(shape, rule, opened=True)
    assert empty.open_seeds == (None, None) and real.open_seeds == (7, None)
    found: list[list[tuple[int, ...]]] = []
    for batch in (real, empty):
        shapes: list[tuple[int, ...]] = []
        map_tensors((batch.layout, batch.blocks), lambda x, seen=shapes: seen.append(x.shape))
        found.append(shapes)
    assert found[0] == found[1]
    assert (real.layout.open_BS >= 0).sum(1).tolist() == [40, 0]
    assert not (empty.layout.open_BS >= 0).any()
    assert padding(shape, rule).layout.open_BS is None


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


def weights_after_a_step(
    *, is_warm: bool, open_summary_rate: float = 0.0
) -> dict[str, torch.Tensor]:
    ranks = start_ranks("cpu")
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=1, gradient_clipping=1.0, device="cpu"
    )
    settings = load_ds_config(ROOT / "ds_configs/zero2.json")
    ds_config = resolve_ds_config(settings, run, source="zero2.json")
    torch.manual_seed(0)
    config = tiny_config(num_layers=4, width=32, ffn_width=64, open_summary_rate=open_summary_rate)
    engine = Engine(MuseFormer(config), ranks, ds_config, OptimizerConfig())

    def predict(batch: Batch) -> torch.Tensor:
        plan = build_plan(batch.layout, RULES["halves"])
        return engine(batch.ids_BT, batch.layout, plan, NoisedOwn.of(batch.open_seeds))

    if is_warm:
        plan = PlanConfig(max_seq_len=256, bucket_multiple=128)
        shapes = declare_shapes(plan, PhaseConfig(micro_batch_rows=2))
        warm_up(engine, predict, shapes, None, opened=config.num_open_layers > 0)
    engine.set_learning_rate(1e-2)
    engine.backward(predict(collate_rows([[]], 128)).float().square().mean())
    engine.update()
    return engine.full_weights()


@pytest.mark.parametrize("rate", [0.0, 0.3], ids=["closed", "open"])
def test_a_warm_up_leaves_no_trace_in_the_steps_after_it(rate: float) -> None:
    warm, cold = (
        weights_after_a_step(is_warm=is_warm, open_summary_rate=rate) for is_warm in (True, False)
    )
    assert all(torch.equal(warm[name], cold[name]) for name in cold)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_ranks_warm_up_in_orders_of_their_own_and_leave_no_trace(
    stage: str, tmp_path: Path
) -> None:
    done = run([*torchrun(2), "tests/training/warm_up_worker.py", str(tmp_path), stage])
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    # Four shapes with gradients, four without, and the step after them.
    assert first["lengths"] == [128, 256, 384, 512] * 2 + [128]
    assert second["lengths"] == [384, 512, 128, 256] * 2 + [128]
    assert first["same"] and second["same"]


@pytest.fixture
def dynamo() -> Iterator[None]:
    """The compiler of torch as it was before, whatever a test asks of it."""
    config = torch._dynamo.config
    names = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    before = {name: getattr(config, name) for name in names}
    torch._dynamo.reset()
    yield
    for name, value in before.items():
        setattr(config, name, value)
    torch._dynamo.reset()


def test_one_graph_more_than_declared_is_an_error(dynamo: None) -> None:
    double = torch.compile(lambda x: x * 2, dynamic=False, fullgraph=True, backend="eager")
    double(torch.ones(7))  # as the probe of the precision does before
    limit_graphs(2)
    for length in (2, 3):
        double(torch.ones(length))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with pytest.raises(Exception, match="recompile_limit"):
        double(torch.ones(9))


ONE = BatchShape(2, 128, 128)
SHAPES = Shapes(train=(ONE,), score=())


def test_a_shape_that_was_not_declared_ends_the_run_by_name_before_it_is_computed() -> None:
    budget = GraphBudget(SHAPES, 3)
    with budget.watch(padding(ONE, None)):
        pass
    longer = budget.watch(padding(BatchShape(2, 256, 128), None))
    message = r"2 x 256 tokens in training; .* 2 x 128 tokens"
    with pytest.raises(TrainingError, match=message), longer:
        pytest.fail("the batch was computed")
    scored = budget.watch(padding(ONE, None))
    message = "2 x 128 tokens in validation"
    with torch.no_grad(), pytest.raises(TrainingError, match=message), scored:
        pytest.fail("the batch was computed")


@pytest.mark.parametrize("is_limited", [True, False], ids=["by torch", "by counting"])
def test_a_value_compiled_in_is_one_graph_too_many_and_the_shape_is_named(
    is_limited: bool, dynamo: None
) -> None:
    scale = torch.compile(lambda x, by: x * by, dynamic=False, fullgraph=True, backend="eager")
    limit_graphs(1 if is_limited else 8)
    budget, batch = GraphBudget(SHAPES, 1), padding(ONE, None)
    with budget.watch(batch):
        scale(batch.ids_BT, 2)
    with budget.watch(batch):
        scale(batch.ids_BT, 2)
    assert budget.num_compiled == 1
    message = r"2 x 128 tokens in training wants one more graph than the 1 declared.*TORCH_LOGS"
    with pytest.raises(TrainingError, match=message), budget.watch(batch):
        scale(batch.ids_BT, 3)


def test_what_is_compiled_outside_the_batches_of_a_run_counts_for_nobody(dynamo: None) -> None:
    limit_graphs(8)
    double = torch.compile(lambda x: x * 2, dynamic=False, fullgraph=True, backend="eager")
    budget, batch = GraphBudget(SHAPES, 1), padding(ONE, None)
    double(torch.ones(3))
    with budget.watch(batch):
        double(batch.ids_BT)
    double(torch.ones(4))
    with budget.watch(batch):
        double(batch.ids_BT)
    assert budget.num_compiled == 1


def test_computing_a_layer_again_in_the_backward_pass_adds_no_graph(dynamo: None) -> None:
    attend = torch.compile(
        lambda q, k: torch.softmax(q @ k.T, -1) @ k,
        dynamic=False,
        fullgraph=True,
        backend="aot_eager",
    )
    weight = torch.randn(8, 8, requires_grad=True)
    calls = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return x + attend(x @ weight, x)

    def run(call: Callable[..., torch.Tensor]) -> torch.Tensor:
        x = torch.ones(16, 8, requires_grad=True)
        for _ in range(2):
            x = call(x)
        (gradient,) = torch.autograd.grad(x.square().sum(), weight)
        return gradient

    limit_graphs(8)
    budget, batch = GraphBudget(SHAPES, 8), padding(ONE, None)
    with budget.watch(batch):
        expected = run(layer)
    num_plain, num_calls = budget.num_compiled, len(calls)
    with budget.watch(batch):
        found = run(lambda x: checkpoint(layer, x, use_reentrant=False))
    assert len(calls) == 3 * num_calls and all(calls), "each layer ran once more, with gradients"
    assert budget.num_compiled == num_plain
    assert torch.allclose(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "layer"])
def test_compiled_attention_takes_the_declared_graphs_whatever_the_music_and_not_one_more(
    checkpointing: str, chorale_shards: Path, dynamo: None
) -> None:
    rule = RULES["halves"]
    shape = BatchShape(1, 1024, 128)
    shapes = Shapes(train=(), score=(shape,))
    num_graphs = shapes.num_graphs(rule)
    assert num_graphs == 3
    torch.manual_seed(0)
    config = tiny_config(num_layers=2, max_seq_len=1024, vocab_size=VOCAB_SIZE)
    model = MuseFormer(config, checkpointing=checkpointing)  # type: ignore[arg-type]
    split = ShardFolder.open(chorale_shards).split("train")
    limit_graphs(num_graphs)
    budget = GraphBudget(shapes, num_graphs)
    with torch.no_grad():
        for first in range(4):
            pieces = [split.read(first)[:500], split.read(first + 4)[: 300 + first]]
            batch = collate_rows([pieces], shape.tokens, rule)
            with budget.watch(batch):
                plan = build_plan(batch.layout, rule, "flex", batch.blocks)
                found = model(batch.ids_BT, batch.layout, plan)
            expected = model(batch.ids_BT, batch.layout, build_plan(batch.layout, rule))
            there = batch.layout.piece_BT >= 0
            assert torch.allclose(found[there], expected[there], atol=1e-4)
            assert budget.num_compiled == num_graphs
        longer = collate_rows([[]], 1152, rule)
        with pytest.raises(TrainingError, match="1 x 1,152"), budget.watch(longer):
            pytest.fail("the batch was computed")
        # Past the declaration, torch itself refuses rather than run attention uncompiled.
        smuggled = GraphBudget(Shapes(train=(), score=(BatchShape(1, 1152, 128),)), num_graphs)
        with pytest.raises(TrainingError, match="one more graph than"), smuggled.watch(longer):
            plan = build_plan(longer.layout, rule, "flex", longer.blocks)
            model(longer.ids_BT, longer.layout, plan)
