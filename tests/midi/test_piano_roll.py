from pathlib import Path

import numpy as np
from matplotlib.image import imread

from meloformer.midi.piano_roll import save_piano_roll
from tests.midi.pieces import canonical_piece


def test_a_longer_piece_gives_a_larger_picture_up_to_a_limit(tmp_path: Path):
    sizes = []
    for num_bars in (1, 30, 1000):
        notes = [(num_bars - 1, 0, 0, 38, 24, 66), (0, 41, 0, 60, 48, 126)]
        piece = canonical_piece([0] * num_bars, [40] * num_bars, notes)
        save_piano_roll(piece, tmp_path / "roll.png", title="a title")
        sizes.append(imread(tmp_path / "roll.png").shape[:2])
    assert sizes[0] < sizes[1] < sizes[2] < (6000, 2100)
    assert all(width < 2100 for _, width in sizes)


def test_every_instrument_has_a_colour_of_its_own(tmp_path: Path):
    colours = []
    for instruments in ([1, 1, 1], [1, 2, 3]):
        notes = [(0, inst, 0, 41 + 20 * n, 96, 126) for n, inst in enumerate(instruments)]
        save_piano_roll(canonical_piece([3], [40], notes), tmp_path / "roll.png")
        pixels = imread(tmp_path / "roll.png")[:, :690, :3].reshape(-1, 3).round(2)
        saturated = pixels[pixels.max(1) - pixels.min(1) > 0.3]
        values, counts = np.unique(saturated, axis=0, return_counts=True)
        colours.append(len(values[counts > 200]))
    assert colours[1] == colours[0] + 2
