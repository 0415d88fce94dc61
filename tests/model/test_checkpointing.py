"""Checkpointing changes what is kept, and nothing that is computed."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from meloformer.model import attention, masks
from meloformer.model.config import Checkpointing
from meloformer.model.museformer import Layer, MuseFormer
from tests.layouts import as_torch, random_layout, tiny_config

RECOMPUTING = tuple(mode for mode in get_args(Checkpointing) if mode != "none")


def model_of(rule: str, checkpointing: Checkpointing) -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(rule=rule, num_layers=2), checkpointing=checkpointing)


def run(model: MuseFormer) -> Tensor:
    layout = as_torch(random_layout(seed=3, length=128))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 976, layout.piece_BT.shape, generator=generator)
    logits: Tensor = model(
        ids, layout, attention.build_plan(layout, masks.RULES[model.config.rule])
    )
    return logits.logsumexp(-1).mean()


@pytest.mark.parametrize("rule", masks.RULES)
def test_loss_and_gradients_are_those_without_checkpointing(rule: str) -> None:
    plain = model_of(rule, "none")
    expected = run(plain)
    expected.backward()
    for mode in RECOMPUTING:
        model = model_of(rule, mode)
        loss = run(model)
        loss.backward()
        assert abs(loss.item() - expected.item()) <= 1e-6
        for (name, found), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert found.grad is not None and wanted.grad is not None, name
            error = (found.grad - wanted.grad).abs().max() / wanted.grad.abs().max()
            assert error <= 1e-6, (mode, name)


def calls_of(model: MuseFormer, name: str, function: Callable[[], object]) -> int:
    """Times that a part of the layers runs during a function."""
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    parts = [layer.get_submodule(name) for layer in model.layers if isinstance(layer, Layer)]
    handles = [part.register_forward_hook(add) for part in parts]
    function()
    for handle in handles:
        handle.remove()
    return count


# Both streams run the feed-forward network, but for the last layer's summaries.
@pytest.mark.parametrize(("mode", "ffn", "query"), [("none", 3, 4), ("ffn", 6, 4), ("layer", 6, 8)])
def test_a_backward_pass_computes_again_what_the_mode_says(
    mode: Checkpointing, ffn: int, query: int
) -> None:
    model = model_of("halves", mode)
    assert calls_of(model, "ffn_in", lambda: run(model).backward()) == ffn
    assert calls_of(model, "query", lambda: run(model).backward()) == query


@pytest.mark.parametrize("mode", RECOMPUTING)
def test_without_gradients_nothing_is_packed_or_computed_twice(mode: Checkpointing) -> None:
    model = model_of("halves", mode).eval()
    packed: list[Tensor] = []
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(packed.append, lambda kept: kept),
    ):
        assert calls_of(model, "query", lambda: run(model)) == 4
    assert packed == []


def test_checkpointing_is_no_part_of_the_models_settings(tmp_path) -> None:
    model = model_of("halves", "layer")
    model.config.save(tmp_path)
    assert "checkpointing" not in (tmp_path / "config.json").read_text()
    assert model.state_dict().keys() == model_of("halves", "none").state_dict().keys()
