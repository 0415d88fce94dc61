"""The moving average of the weights: of good updates alone, whole under every partitioning."""

from pathlib import Path

import pytest
import torch

from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.attention import build_plan
from meloformer.training.ema import WeightAverage, check_same_average, decay_after
from meloformer.training.engine import Engine
from meloformer.training.ranks import start_ranks
from tests.training.checkpoint_worker import EMA, build_engine, save, train
from tests.training.gradient_worker import RULE, global_batch, tiny_model

DECAY = 0.7
EVERY_WAY = [
    ("zero1", True),
    ("zero2", False),
    ("zero3", False),
    pytest.param("zero2", True, marks=pytest.mark.slow),
    pytest.param("zero2_offload", False, marks=pytest.mark.slow),
    pytest.param("zero3", True, marks=pytest.mark.slow),
]


def averaged(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine.each_averaged_weight()}


def test_the_average_is_the_textbook_recursion_with_a_decay_that_rises() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(7, generator=generator), torch.randn(3, generator=generator)]
    average = WeightAverage(weights, DECAY)
    expected = [cut.double() for cut in weights]
    shares = []
    for update in range(1, 40):
        for cut in weights:
            cut.add_(torch.randn(cut.shape, generator=generator))
        average.update(weights)
        shares.append(min(DECAY, (1 + update) / (10 + update)))
        for index, cut in enumerate(weights):
            expected[index] = shares[-1] * expected[index] + (1 - shares[-1]) * cut.double()
    assert shares[0] < 0.2 and shares[-1] == DECAY, "both ends of the warm-up were met"
    for found, wanted in zip(average.tensors, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)
    assert decay_after(10**6, EMA) == EMA


def test_weights_and_averages_that_changed_places_twice_are_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meloformer.training.ema._CHUNK_ELEMENTS", 4)
    weights = [torch.arange(11.0)]
    average = WeightAverage(weights, DECAY)
    weights[0].neg_()
    average.swap(weights)
    assert torch.equal(weights[0], torch.arange(11.0))
    assert torch.equal(average.tensors[0], -torch.arange(11.0))
    average.swap(weights)
    assert torch.equal(weights[0], -torch.arange(11.0))


@pytest.mark.parametrize(("name", "is_bf16"), EVERY_WAY)
def test_the_model_computes_with_its_average_and_trains_on_as_if_it_never_had(
    name: str, is_bf16: bool
) -> None:
    ranks = start_ranks("cpu")
    plain = build_engine(ranks, name, is_bf16=is_bf16)
    expected = [*train(plain, 2), *train(plain, 2)]

    engine = build_engine(ranks, name, is_bf16=is_bf16, ema=DECAY)
    start = engine.full_weights()
    losses = train(engine, 2)
    ids, _, layout = global_batch()
    plan = build_plan(layout, RULE)
    reference = tiny_model()
    reference.load_state_dict(averaged(engine))
    if is_bf16:
        reference.bfloat16()
    with torch.no_grad():
        with engine.averaged_weights():
            logits = engine(ids, layout, plan)
        raw = engine(ids, layout, plan)
        wanted = reference(ids, layout, plan)
    assert torch.equal(logits, wanted)
    assert not torch.equal(raw, wanted)
    assert [*losses, *train(engine, 2)] == expected

    after, found = engine.full_weights(), averaged(engine)
    moved = [weight for weight in start if not torch.equal(start[weight], after[weight])]
    assert len(moved) > 10
    # The nearest bf16 may be the same.
    assert sum(not torch.equal(found[weight], after[weight]) for weight in moved) > 10
    assert {weight.dtype for weight in found.values()} == {
        torch.bfloat16 if is_bf16 else torch.float32
    }


def test_the_engines_average_is_that_of_its_weights_after_each_good_update() -> None:
    engine = build_engine(start_ranks("cpu"), "zero2", is_bf16=False, ema=DECAY)
    expected = {name: weight.double() for name, weight in engine.full_weights().items()}
    for update in range(1, 4):
        train(engine, 1)
        share = decay_after(update, DECAY)
        for name, weight in engine.full_weights().items():
            expected[name] = share * expected[name] + (1 - share) * weight.double()
    engine.drop_gradients()  # a step that is left out is no update
    for name, found in averaged(engine).items():
        torch.testing.assert_close(found.double(), expected[name], atol=1e-6, rtol=0)


def test_parts_without_an_average_are_refused_where_one_is_kept(tmp_path: Path) -> None:
    ranks = start_ranks("cpu")
    save(build_engine(ranks, "zero2", is_bf16=False), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"found no averaged weights of .*, expected .* --ema"
    ):
        build_engine(ranks, "zero2", is_bf16=False, ema=EMA).load(tmp_path)


def test_a_run_goes_on_with_the_average_that_it_was_started_with() -> None:
    check_same_average(EMA, EMA)
    check_same_average(0.0, 0.0)
    with pytest.raises(ConfigError, match=r"started without it.* allowed: to go on without --ema"):
        check_same_average(EMA, 0.0)
    for asked in (0.0, 0.99):
        with pytest.raises(ConfigError, match=r"--ema 0\S*: .* started with --ema 0\.999; allowed"):
            check_same_average(asked, EMA)
