"""What the engine really holds: activations under each mode of checkpointing, states by stage."""

import gc
import warnings
from collections.abc import Iterator
from typing import get_args

import pytest
import torch

from meloformer.model.attention import build_plan
from meloformer.model.config import Checkpointing
from meloformer.model.counts import num_parameters
from meloformer.model.memory import BatchSize
from meloformer.model.museformer import MuseFormer
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.engine import Engine
from meloformer.training.loss import step_loss
from meloformer.training.memory import Forecast, Partitioning, forecast
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.ranks import Ranks, start_ranks
from tests.model import live_bytes
from tests.training.gradient_worker import RULE, global_batch, tiny_model
from tests.training.launching import ROOT

MICRO_BATCHES = ([0, 1, 2, 3], [4, 5, 6, 7])


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield start_ranks("cpu")


def settings(stage: int, *, is_bf16: bool) -> dict:
    run = RunFacts(
        micro_batch_rows=4, accumulation=2, world_size=1, gradient_clipping=1.0, device="cpu"
    )
    chosen = load_ds_config(ROOT / f"ds_configs/zero{stage}.json") | {"bf16": {"enabled": is_bf16}}
    return resolve_ds_config(chosen, run, source=f"zero{stage}.json")


def built(ranks: Ranks, ds_config: dict, checkpointing: Checkpointing = "none") -> Engine:
    config = tiny_model().config
    torch.manual_seed(0)
    model = MuseFormer(config, checkpointing=checkpointing)
    return Engine(model, ranks, ds_config, OptimizerConfig())


def loss_of(engine: Engine, rows: list[int]) -> torch.Tensor:
    ids, targets, layout = global_batch()
    part = layout.map(lambda label: label[rows])
    logits = engine(ids[rows], part, build_plan(part, RULE))
    return step_loss(logits, targets[rows], float((targets >= 0).sum()), 1)


def train(engine: Engine, num_steps: int) -> list[float]:
    losses = []
    for _ in range(num_steps):
        engine.set_learning_rate(1e-2)
        losses += [engine.backward(loss_of(engine, rows)).item() for rows in MICRO_BATCHES]
        assert engine.grad_norm() > 0
        engine.update()
    return losses


def test_checkpointing_moves_no_loss_and_no_weight_of_three_steps_and_keeps_less(
    ranks: Ranks,
) -> None:
    losses, weights, kept = {}, {}, {}
    modes = get_args(Checkpointing)
    for mode in modes:
        engine = built(ranks, settings(2, is_bf16=False), mode)
        losses[mode] = train(engine, 3)
        weights[mode] = engine.full_weights()
        own = {weight.untyped_storage().data_ptr() for weight in engine.module.parameters()}
        kept[mode] = live_bytes.kept_bytes(
            lambda engine=engine: loss_of(engine, MICRO_BATCHES[0]),  # type: ignore[misc]
            lambda tensor, own=own: tensor.untyped_storage().data_ptr() in own,  # type: ignore[misc]
        )
    assert losses["none"][-1] < losses["none"][0]
    for mode in modes:
        assert losses[mode] == losses["none"], mode
        for name, weight in weights[mode].items():
            assert torch.equal(weight, weights["none"][name]), (mode, name)
    assert modes == ("none", "ffn", "layer")
    assert kept["none"] > kept["ffn"] > kept["layer"]


def living() -> dict[int, int]:
    """Bytes of every storage that something holds, by its address."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        # Looking at a module of torch's asks for names that it warns of.
        warnings.simplefilter("ignore")
        tensors = [held for held in gc.get_objects() if type(held) in HELD]
    tensors += [held.grad for held in tensors if held.is_leaf and held.grad is not None]
    for tensor in tensors:
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


HELD = (torch.Tensor, torch.nn.Parameter)


@pytest.mark.parametrize("is_bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_between_two_micro_batches_the_engine_holds_the_states_of_the_formula(
    stage: int, is_bf16: bool, ranks: Ranks
) -> None:
    ds_config = settings(stage, is_bf16=is_bf16)
    config = tiny_model().config
    # Buffers on their way are there while they are filled: not now, if they are no larger.
    bucket = num_parameters(config)
    ds_config["zero_optimization"]["reduce_bucket_size"] = bucket
    before = living()
    engine = built(ranks, ds_config)
    train(engine, 1)
    engine.backward(loss_of(engine, MICRO_BATCHES[0]))
    after = living()
    held = sum(count for address, count in after.items() if address not in before)
    predicted: Forecast = forecast(
        config, BatchSize.of(1, 512), Partitioning.of(ds_config, world_size=1), "cpu"
    )
    assert held == pytest.approx(predicted.states, rel=0.01)
    moments = sum(
        value.nbytes
        for state in engine._deepspeed.optimizer.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert moments == pytest.approx(2 / 3 * predicted.optimizer, rel=0.01)
    assert sum(p.nbytes for p in engine.module.parameters()) == predicted.weights
