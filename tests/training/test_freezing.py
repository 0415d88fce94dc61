"""--freeze: what it names, that it stays as it is to the last bit, and that the rest is trained."""

from pathlib import Path

import pytest
import torch

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.config import SIZES
from meloformer.model.museformer import MuseFormer
from meloformer.training.freezing import (
    count_parameters,
    describe_frozen,
    freeze,
    frozen_names,
)
from meloformer.training.loss import step_loss
from meloformer.training.ranks import start_ranks
from tests.layouts import tiny_config
from tests.training.checkpoint_worker import build_engine, save, train
from tests.training.gradient_worker import RULE, global_batch

NAMES = [
    "token_embedding.weight",
    "onset_embedding.weight",
    "summary_start",
    "layers.0.query.weight",
    "layers.0.query_norm.weight",
    "layers.1.query.weight",
    "layers.9.query.weight",
    "layers.10.query.weight",
    "final_norm.weight",
]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["embedding"], NAMES[:2]),
        (["token_embedding", "summary_start"], [NAMES[0], NAMES[2]]),
        (["layers.1"], NAMES[3:5]),
        (["layers.1-2"], NAMES[3:6]),
        (["layers.1-11.query"], [NAMES[3], *NAMES[5:8]]),
        (["layers.10"], [NAMES[6]]),
        (["layers"], NAMES[3:8]),
        (["*norm*"], [NAMES[4], NAMES[8]]),
        (["layers.*.query.weight"], [NAMES[3], *NAMES[5:8]]),
    ],
)
def test_a_pattern_names_modules_with_all_below_and_counts_layers_from_1(
    patterns: list[str], expected: list[str]
) -> None:
    assert frozen_names(NAMES, patterns) == set(expected)


def test_a_pattern_that_names_nothing_is_refused_with_the_names_there_are() -> None:
    for pattern in ("layers.0", "layers.12", "query", "embeddings"):
        with pytest.raises(
            ConfigError, match=rf"--freeze {pattern}: names nothing .* layers\.\*\.query, .* final"
        ):
            frozen_names(NAMES, ["embedding", pattern])
    for pattern in ("layers.3-2", "layers.0-1", "layers.1-60", "layers.1-12.query"):
        with pytest.raises(
            ConfigError, match=r"--freeze .*: found layers .*; allowed: 1 to 11, the"
        ):
            frozen_names(NAMES, [pattern])
    with pytest.raises(ConfigError, match=r"freezes all 9 parameters; allowed: to leave some"):
        frozen_names(NAMES, ["embedding", "summary_start", "layers", "final_norm"])


LOWER = ["embedding", "summary_start", "layers.1-2"]


@pytest.mark.parametrize(
    ("patterns", "num_below"),
    [(LOWER, 2), (["layers.1-2"], 0), (["embedding", "summary_start", "*norm*"], 0)],
)
@pytest.mark.parametrize("checkpointing", ["none", "layer"])
def test_what_is_trained_has_the_gradient_it_would_have_if_all_were(
    patterns: list[str], num_below: int, checkpointing
) -> None:
    def gradients(patterns: list[str]) -> tuple[MuseFormer, dict[str, torch.Tensor | None]]:
        torch.manual_seed(0)
        model = MuseFormer(tiny_config(num_layers=3, vocab_size=97), checkpointing=checkpointing)
        freeze(model, patterns)
        ids, targets, layout = global_batch()
        loss = step_loss(model(ids, layout, build_plan(layout, RULE)), targets, 1, 1)
        loss.backward()
        return model, {name: parameter.grad for name, parameter in model.named_parameters()}

    _, whole = gradients([])
    model, found = gradients(patterns)
    assert model.num_frozen_layers == num_below
    frozen = frozen_names(list(whole), patterns)
    for name, gradient in found.items():
        if name in frozen:
            assert gradient is None
        else:
            assert gradient is not None and torch.equal(gradient, whole[name]), name


def test_a_model_that_is_whole_computes_as_before_without_gradients_of_its_streams() -> None:
    model = MuseFormer(tiny_config(vocab_size=97)).requires_grad_(False)
    ids, _, layout = global_batch()
    assert not model(ids, layout, build_plan(layout, RULE)).requires_grad


@pytest.mark.parametrize(
    ("name", "is_bf16"),
    [("zero1", True), ("zero3", False), pytest.param("zero2", True, marks=pytest.mark.slow)],
)
def test_frozen_weights_stay_to_the_last_bit_and_checkpoints_go_on(
    name: str, is_bf16: bool, tmp_path: Path
) -> None:
    ranks = start_ranks("cpu")
    patterns = ["embedding", "layers.1", "final_norm"]

    def build():
        return build_engine(ranks, name, is_bf16=is_bf16, frozen=tuple(patterns), ema=0.9)

    engine = build()
    before = engine.full_weights()
    frozen = frozen_names(list(before), patterns)
    train(engine, 2)
    after = engine.full_weights()
    for weight, value in after.items():
        assert torch.equal(value, before[weight]) == (weight in frozen), weight
    averaged = {weight: value.clone() for weight, value in engine.each_averaged_weight()}
    assert all(torch.equal(averaged[weight], before[weight]) for weight in frozen)

    save(engine, tmp_path)
    expected = train(engine, 2)
    again = build()
    train(again, 1)
    again.load(tmp_path)
    assert train(again, 2) == expected


def test_gradients_and_optimizer_state_are_of_the_trained_alone() -> None:
    ranks = start_ranks("cpu")
    engine = build_engine(ranks, "zero2", is_bf16=False, frozen=("layers",))
    trained, parameters = count_parameters(engine.module)
    assert 0 < trained < parameters / 2
    assert engine.gradient_bytes == 4 * trained
    # DeepSpeed pads its groups.
    assert 8 * trained <= engine.state_to_come() < 8 * trained + 1000
    ids, targets, layout = global_batch()
    num_targets = int((targets != IGNORE_INDEX).sum())
    logits = engine(ids, layout, build_plan(layout, RULE))
    engine.backward(step_loss(logits, targets, num_targets, 1))
    found = engine.full_gradients()
    assert found and not any(name.startswith("layers.") for name in found)
    assert sum(gradient.numel() for gradient in found.values()) == trained
    (said,) = describe_frozen(engine.module, ["layers"])
    assert f"{trained:,} trained" in said and f"{parameters - trained:,} frozen" in said


def test_the_first_six_layers_of_small_are_the_six_lowest() -> None:
    assert SIZES["small"].num_layers == 8
    names = [f"layers.{index}.query.weight" for index in range(8)]
    assert frozen_names(names, ["layers.1-6"]) == set(names[:6])
