"""Pieces that were asked for, as files: in their order, each as if it were the only one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.generation import writing
from meloformer.generation.controls import ControlConfig
from meloformer.generation.text import Order
from meloformer.generation.writing import WritingConfig, write_orders
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.model.injection import Injection
from tests.generation.steered_models import BASE_WIDTH


@pytest.mark.parametrize("at_once", [2, 64])
def test_files_are_those_of_each_order_alone_whatever_is_sampled_beside_it(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(writing, "_AT_ONCE", at_once)
    summaries_BSD = torch.randn(2, 3, BASE_WIDTH, generator=torch.Generator().manual_seed(0))
    injection = Injection(summaries_BSD=summaries_BSD, mask_BS=torch.ones(2, 3, dtype=torch.bool))
    one_player = ("0",)
    orders = [
        Order(title="long", controls=ControlConfig(bars=3, instruments=one_player)),
        Order(title="short", controls=ControlConfig(bars=1, tempo=90, instruments=one_player)),
        Order(
            title="[b]steered[/b]",
            controls=ControlConfig(bars=3, instruments=one_player),
            injection=injection,
        ),
    ]
    config = WritingConfig(output=tmp_path / "all.mid", num_samples=2, seed=3)
    write_orders(config, base, orders)
    names = [f"all-{number}{suffix}" for number in range(6) for suffix in (".mid", ".png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for place, order in enumerate(orders):
        write_orders(replace(config, output=tmp_path / "one.mid"), base, [order])
        for number in range(2):
            together, alone = (
                tmp_path / name for name in (f"all-{2 * place + number}.mid", f"one-{number}.mid")
            )
            assert together.read_bytes() == alone.read_bytes()
            music = quantise(read_midi(alone))
            assert music.num_bars == order.controls.num_bars
