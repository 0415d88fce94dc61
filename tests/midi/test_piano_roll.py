from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread

from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.piano_roll import _Picture, save_piano_roll
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import canonical_piece


def test_a_longer_piece_gives_a_larger_picture_up_to_a_limit(tmp_path: Path):
    sizes = []
    for num_bars in (1, 30, 300):
        notes = [(num_bars - 1, 0, 0, 38, 24, 66), (0, 41, 0, 60, 48, 126)]
        piece = canonical_piece([0] * num_bars, [40] * num_bars, notes)
        save_piano_roll(piece, tmp_path / "roll.png", title="a title")
        sizes.append(imread(tmp_path / "roll.png").shape[:2])
    assert sizes[0] < sizes[1] < sizes[2] < (9000, 2100)
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


def drawn(piece: QuantisedPiece) -> Figure:
    figure = Figure()
    FigureCanvasAgg(figure)
    _Picture(piece).draw(figure, "a title")
    return figure


def test_chords_stand_above_the_bars_in_which_they_begin_and_bars_have_lines() -> None:
    triads = [(0, 4, 7), (0, 4, 7), (9, 0, 4), (7, 11, 2)]
    notes = [(bar, 1, 0, 60 + p, 96, 98) for bar, triad in enumerate(triads) for p in sorted(triad)]
    figure = drawn(canonical_piece([METRE_INDEX[4, 4]] * 4, [40] * 4, notes))
    (axes,) = figure.axes
    assert {text.get_text(): text.xy[0] for text in axes.texts} == {"C": 0, "Am": 8, "G": 12}
    lines = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    uprights = {p[0][0] for group in lines for p in group.get_segments() if p[0][0] == p[1][0]}
    assert uprights == {0, 4, 8, 12, 16}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4"]


def test_the_legend_names_every_instrument_and_drums_have_a_lane_of_their_own() -> None:
    notes = [(0, 0, 0, 36, 24, 98), (0, 0, 24, 38, 24, 98), (0, 1, 0, 60, 24, 98)]
    notes += [(0, 41, 0, 60, 24, 98)]
    figure = drawn(canonical_piece([METRE_INDEX[4, 4]], [40], sorted(notes)))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("Acoustic Grand Piano", "Violin", "Drums")
    ]
    _, lane = figure.axes
    assert [label.get_text() for label in lane.get_yticklabels()] == ["kick", "snare"]


def test_no_note_is_drawn_in_two_lines_unless_it_sounds_in_both() -> None:
    metres = [METRE_INDEX[4, 4]] * 20 + [METRE_INDEX[3, 4]] * 20
    notes = [(bar, 1, 0, 60, 24, 98) for bar in range(40) if bar != 5]
    notes = sorted([*notes, (5, 1, 0, 60, 24, 98)])
    figure = drawn(canonical_piece(metres, [40] * 40, notes))
    shown = [
        len(polygons.get_paths())
        for axes in figure.axes
        for polygons in axes.collections
        if isinstance(polygons, PolyCollection)
    ]
    assert len(shown) > 1 and sum(shown) == 40


def test_of_two_instruments_in_unison_both_are_seen(tmp_path: Path) -> None:
    seen = []
    for instruments in ([1], [41], [1, 41]):
        notes = [(0, instrument, 0, 60, 96, 126) for instrument in instruments]
        notes += [(0, other, 0, 30, 2, 126) for other in {1, 41} - set(instruments)]
        save_piano_roll(
            canonical_piece([METRE_INDEX[4, 4]], [40], sorted(notes)), tmp_path / "roll.png"
        )
        pixels = imread(tmp_path / "roll.png")[:, :690, :3].reshape(-1, 3).round(2)
        values, counts = np.unique(pixels, axis=0, return_counts=True)
        is_colour = (values.max(1) - values.min(1) > 0.3) & (counts > 500)
        seen.append({tuple(value) for value in values[is_colour].tolist()})
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[2] == seen[0] | seen[1]


@pytest.mark.parametrize("title", ["W" * 300, "8 bars, $97 bpm, " * 9])
def test_a_title_ends_inside_the_picture_whatever_its_letters(tmp_path: Path, title: str) -> None:
    piece = canonical_piece([3], [40], [(0, 1, 0, 60, 24, 66)])
    save_piano_roll(piece, tmp_path / "roll.png", title=title)
    band = imread(tmp_path / "roll.png")[:40, :, 0]
    inked = np.flatnonzero(band.min(0) < 0.5)
    assert 0.8 * band.shape[1] < inked[-1] < band.shape[1] - 6


def test_a_title_that_finds_room_is_whole_and_a_longer_one_says_that_it_goes_on() -> None:
    notes = [(0, 1, 0, 60, 24, 66)]
    shown = []
    for title in ("a title, $5", "Violin (40), " * 30):
        figure = Figure()
        FigureCanvasAgg(figure)
        _Picture(canonical_piece([3], [40], notes)).draw(figure, title)
        shown.append(figure.texts[0].get_text())
    assert shown[0] == r"a title, \$5"
    assert shown[1].endswith("…") and ("Violin (40), " * 30).startswith(shown[1][:-1])
