"""Texts of more bars than a bridge gives at once: windows that overlap and are joined."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.generation.controls import ControlConfig
from meloformer.generation.text import TextConfig
from tests.generation.steered_models import (
    BASE_WIDTH,
    NUM_QUERIES,
    orders,
    summaries,
    write_run,
)


def test_more_bars_than_a_bridge_gives_at_once_are_joined(base, qformer_run) -> None:
    def ask(bars: int) -> torch.Tensor:
        config = TextConfig(text=("calm",), bridge=qformer_run)
        (order,) = orders(config, base, ControlConfig(bars=bars))
        return summaries(order)[0]

    once, long = ask(NUM_QUERIES), ask(70)
    assert long.shape == (70, BASE_WIDTH) and long.isfinite().all()
    # A window begins every 12 bars, and the next one fades in from there on.
    torch.testing.assert_close(long[:12], once[:12])
    torch.testing.assert_close(long[12], (12 * once[12] + once[0]) / 13)


@pytest.mark.parametrize(
    ("kind", "config"), [(QFormer, QFormerConfig), (DiffusionBridge, DiffusionBridgeConfig)]
)
def test_more_bars_than_a_bridge_was_trained_on_are_joined_from_windows_of_those_alone(
    base, encoder, tmp_path, kind, config
) -> None:
    def ask(bars: int, **extra: int) -> torch.Tensor:
        run = write_run(tmp_path / "run", kind, config, encoder, **extra)
        steering = TextConfig(text=("calm",), bridge=run)
        (order,) = orders(steering, base, ControlConfig(bars=bars))
        return summaries(order)[0]

    longest, whole, long = (ask(bars, trained_bars=10) for bars in (10, NUM_QUERIES, 40))
    assert whole.shape == (NUM_QUERIES, BASE_WIDTH) and long.shape == (40, BASE_WIDTH)
    for found in (whole, long):
        # A window begins every 5 bars.
        torch.testing.assert_close(found[:5], longest[:5])
    # A bridge that does not say on how many it was trained: on as many as it has.
    assert not torch.allclose(ask(NUM_QUERIES)[:5], longest[:5], atol=1e-3)


def test_queries_that_were_never_trained_have_no_say(base, encoder, tmp_path) -> None:
    def ask(bars: int, **extra: int) -> torch.Tensor:
        run = write_run(tmp_path / "run", QFormer, QFormerConfig, encoder, **extra)
        found = []
        for noise in (0.0, 5.0):
            path = run / "model" / "model.safetensors"
            weights = load_file(path)
            weights["queries"][10:] += noise
            save_file(weights, path)
            steering = TextConfig(text=("calm",), bridge=run)
            (order,) = orders(steering, base, ControlConfig(bars=bars))
            found.append(summaries(order))
        return (found[1] - found[0]).abs().amax()

    assert ask(10, trained_bars=10) == ask(11, trained_bars=10) == ask(60, trained_bars=10) == 0
    assert ask(10) == 0 < ask(11), "which is no matter of course"


def test_windows_of_a_long_text_are_draws_of_their_own(base, diffusion_run) -> None:
    config = TextConfig(text=("calm",), bridge=diffusion_run)
    (order,) = orders(config, base, ControlConfig(bars=3 * NUM_QUERIES))
    (found,) = summaries(order)
    # Windows are 12 bars apart; alike they would make the piece repeat itself from bar 12 on.
    assert not torch.allclose(found[12:24], found[24:36], atol=1e-3)
