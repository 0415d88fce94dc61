"""Pieces that are stopped: what is finished stays, but a file needs a note."""

from pathlib import Path

import pytest

from meloformer.demo.border import PageError
from meloformer.demo.composer import load_composer
from meloformer.demo.settings import PageConfig
from meloformer.demo.wishes import Wish
from meloformer.generation.controls import ControlConfig
from meloformer.generation.sampling import SamplingConfig
from tests.demo.pages import LIMITS, LONGER


@pytest.mark.parametrize("has_note", [True, False])
def test_finished_bars_are_kept_where_one_has_a_note(run_folder: Path, has_note: bool) -> None:
    """Of many seeds, one whose first bar has notes and one whose first bar is empty."""
    composer = load_composer(PageConfig(checkpoint=run_folder, device="cpu", limits=LIMITS))
    for seed in range(32):
        bars: list[int] = []
        wish = Wish(
            controls=ControlConfig(bars=8, instruments=tuple(LONGER["instruments"])),
            text="",
            strict=False,
            sampling=SamplingConfig(),
            seed=seed,
        )

        def hear(bar: object, piece: object, bars: list[int] = bars) -> None:
            bars.append(piece.num_notes)

        try:
            piece = composer.write(wish, lambda _: None, hear, lambda bars=bars: bool(bars))
        except PageError as error:
            assert error.code == "stopped_early" and bars == [0]
            if not has_note:
                return
        else:
            assert piece.num_bars == 1 and piece.num_notes == bars[0] > 0
            if has_note:
                return
    raise AssertionError("no seed of 32 wrote such a bar")
