"""Summaries that pieces and files lend, alone and mixed."""

import pytest
import torch

from meloformer.errors import GenerationError, MeloFormerError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.injecting import Injecting
from meloformer.generation.text import (
    TextConfig,
    order_of_summaries,
)
from tests.generation.steered_models import (
    BASE_WIDTH,
    orders,
    summaries,
)


def test_a_piece_lends_its_summaries_and_a_mixture_goes_from_one_to_the_other(
    base, midi_files
) -> None:
    short, long = (orders(TextConfig(summaries_from=path), base)[0] for path in midi_files)
    assert (short.controls.num_bars, long.controls.num_bars) == (3, 5)
    assert short.title == "after 3.mid"
    (mixture,) = orders(TextConfig(mix=tuple(midi_files), at="0:0,2:1"), base)
    found, first, second = (summaries(order)[0] for order in (mixture, short, long))
    assert len(found) == 3 and mixture.title == "from 3.mid to 5.mid"
    torch.testing.assert_close(found[0], first[0])
    torch.testing.assert_close(found[1], (first[1] + second[1]) / 2)
    torch.testing.assert_close(found[2], second[2])


def test_a_piece_cannot_lend_more_bars_than_it_has(base, midi_files, tmp_path) -> None:
    config, asked = TextConfig(summaries_from=midi_files[0]), ControlConfig(bars=4)
    with pytest.raises(GenerationError, match="--bars 4: found summaries of 3 bars"):
        orders(config, base, asked)
    config = TextConfig(mix=tuple(midi_files), at="0:0")
    with pytest.raises(GenerationError, match="--bars 4 of a mixture: the shorter piece has 3"):
        orders(config, base, asked)


def test_a_file_that_is_no_midi_is_named_with_its_flag(base, midi_files, tmp_path) -> None:
    broken = tmp_path / "broken.mid"
    broken.write_bytes(b"no music")
    for config in (
        TextConfig(summaries_from=broken),
        TextConfig(summaries_from=tmp_path / "absent.mid"),
        TextConfig(mix=(midi_files[0], broken), at="0:0"),
    ):
        flag = "--mix" if config.mix else "--summaries_from"
        with pytest.raises(MeloFormerError, match=f"{flag} .*; allowed: a MIDI file") as refusal:
            orders(config, base)
        assert "\n" not in str(refusal.value)


def test_summaries_of_a_file_are_injected_as_they_are() -> None:
    summaries_SD = torch.randn(6, BASE_WIDTH)
    injecting = Injecting(strategy="replace", alpha=0.25)
    order = order_of_summaries(injecting, ControlConfig(), summaries_SD, "a title")
    assert order.controls.num_bars == 6 and torch.equal(summaries(order)[0], summaries_SD)
    assert order.injection is not None
    assert (order.injection.strategy, order.injection.alpha) == ("replace", 0.25)
    fewer = order_of_summaries(injecting, ControlConfig(bars=2), summaries_SD, "a title")
    assert torch.equal(summaries(fewer)[0], summaries_SD[:2])
