"""A picture of a quantised piece: time to the right, pitch up, one colour per instrument.

Long pieces are broken into lines, as scores are. Above each bar stands the chord that is heard in
it, by the rule of midi/harmony.py: a picture shows what sounds, and a model may write one chord
into a bar token and play another.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meloformer.midi.chord_signs import chord_sign
from meloformer.midi.general_midi import drum_name, instrument_name
from meloformer.midi.grid import DRUMS, STEPS_PER_QUARTER
from meloformer.midi.harmony import bar_chords
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.title_fonts import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BARS_PER_LINE = 16
_MAX_LINES = 16
_INCHES_PER_BAR = 0.7
_MIN_WIDTH_INCHES, _MAX_WIDTH_INCHES = 8.0, 14.0
_LEFT_INCHES, _LEGEND_INCHES, _TITLE_INCHES, _BOTTOM_INCHES = 0.75, 2.2, 0.4, 0.15
_TITLE_MARGIN_INCHES = 0.2
# One line of a short piece is taller than each of many.
_ONLY_LINE_INCHES, _LINE_INCHES = 3.6, 2.3
_INCHES_PER_DRUM, _MAX_DRUM_INCHES = 0.13, 2.2
_SIGNS_INCHES, _TURNED_SIGNS_INCHES = 0.3, 0.6
_NUMBERS_INCHES, _LANE_GAP_INCHES = 0.35, 0.05
_LEGEND_POINTS, _LEAST_LEGEND_POINTS = 8.0, 3.0
_POINTS_PER_INCH, _LEADING = 72, 1.6  # a row of the legend is so many times as high as its letters
_LEAST_STRENGTH = 0.35  # of a colour: the softest note can still be seen
_SLIMMER = 0.4  # by how much the last instrument's notes are slimmer than the first's
_DRUM_GREY = 0.15
_INCHES_PER_SIGN = 0.5  # that a chord wants to be read without being turned
_INCHES_PER_TURNED_SIGN = 0.12
_INCHES_PER_BAR_NUMBER = 0.35
_INCHES_PER_DRUM_NAME = 0.1  # closer together, only some would find room


def save_piano_roll(quantised: QuantisedPiece, path: Path | str, *, title: str = "") -> None:
    """Draw a piece as a PNG.

    Args:
        quantised: the piece.
        path: file to write.
        title: a line above the picture.
    """
    # Figure and canvas without pyplot: no global state, no window, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = _Picture(quantised)
    figure = Figure(figsize=picture.size_inches)
    FigureCanvasAgg(figure)
    picture.draw(figure, title)
    figure.savefig(path, dpi=120)


class _Picture:
    """Measures of the picture of a piece, and its parts; time in quarters.

    Args:
        piece: what is drawn.
    """

    def __init__(self, piece: QuantisedPiece) -> None:
        self.piece = piece
        self.bar_starts = piece.bar_start_steps / STEPS_PER_QUARTER
        self.left = piece.start_steps / STEPS_PER_QUARTER
        self.right = self.left + piece.duration_steps / STEPS_PER_QUARTER
        self.signs = [chord_sign(chord) for chord in bar_chords(piece).tolist()]

        self.drum_keys = np.unique(piece.pitch[piece.instrument == DRUMS])
        melodic = piece.pitch[piece.melodic]
        self.has_melody = bool(len(melodic)) or not len(self.drum_keys)
        self.lowest = int(melodic.min()) if len(melodic) else 48
        self.highest = int(melodic.max()) if len(melodic) else 72
        self.instruments = np.unique(piece.instrument).tolist()
        self.melodic = [instrument for instrument in self.instruments if instrument != DRUMS]

        num_bars = piece.num_bars
        self.first_bars = _line_breaks(self.bar_starts)
        # Of each line, the bar after its last.
        self.bar_after = dict(zip(self.first_bars, [*self.first_bars[1:], num_bars], strict=True))
        # All lines have one scale, so that a bar is as wide in the last as in the first.
        ends = list(self.bar_after.values())
        spans = self.bar_starts[ends] - self.bar_starts[self.first_bars]
        if len(ends) == 1:
            spans[0] = max(spans[0], self.right.max(initial=0.0))
        self.quarters_per_line = float(spans.max())
        self.line_inches = float(
            np.clip(
                _INCHES_PER_BAR * min(num_bars, _BARS_PER_LINE),
                _MIN_WIDTH_INCHES - _LEFT_INCHES - _LEGEND_INCHES,
                _MAX_WIDTH_INCHES,
            )
        )
        tight = any(self._inches_between_chords(b) < _INCHES_PER_SIGN for b in self.first_bars)
        self.signs_inches = _TURNED_SIGNS_INCHES if tight else _SIGNS_INCHES
        self.melody_inches = 0.0
        if self.has_melody:
            self.melody_inches = _ONLY_LINE_INCHES if len(ends) == 1 else _LINE_INCHES
        self.drum_inches = min(_INCHES_PER_DRUM * (len(self.drum_keys) + 1), _MAX_DRUM_INCHES)
        if not len(self.drum_keys):
            self.drum_inches = 0.0

    @property
    def size_inches(self) -> tuple[float, float]:
        """Width and height."""
        line = self.melody_inches + self.drum_inches + _LANE_GAP_INCHES
        line += self.signs_inches + _NUMBERS_INCHES
        width = _LEFT_INCHES + self.line_inches + _LEGEND_INCHES
        return width, _TITLE_INCHES + line * len(self.first_bars) + _BOTTOM_INCHES

    def draw(self, figure: Figure, title: str) -> None:
        """Every line, a lane for the drums below each, the legend and the title."""
        width, height = self.size_inches
        top = height - _TITLE_INCHES

        def lane(inches: float) -> Axes:
            """The next one down, so high."""
            nonlocal top
            top -= inches
            return figure.add_axes(
                (
                    _LEFT_INCHES / width,
                    top / height,
                    self.line_inches / width,
                    inches / height,
                )
            )

        for first in self.first_bars:
            axes = []
            top -= self.signs_inches
            if self.has_melody:
                axes.append(lane(self.melody_inches))
                self._draw_melody(axes[0], first)
            top -= _LANE_GAP_INCHES
            if len(self.drum_keys):
                axes.append(lane(self.drum_inches))
                self._draw_drums(axes[-1], first)
            top -= _NUMBERS_INCHES
            for one in axes:
                self._draw_bars(one, first)
                one.set_xticks([])
            self._number_bars(axes[-1], first)
            self._write_chords(axes[0], first)
        self._entitle(figure, title)
        self._explain(figure)

    def _entitle(self, figure: Figure, title: str) -> None:
        """The title, above all: as much of it as the picture is wide."""
        width, height = self.size_inches
        title, fonts = drawable(title)
        line = figure.text(
            _LEFT_INCHES / width,
            1 - 0.1 / height,
            "",
            va="top",
            fontsize="large",
            fontfamily=fonts,
        )

        def fits(num_letters: int) -> bool:
            shown = title if num_letters == len(title) else title[:num_letters].rstrip(" ,") + "…"
            line.set_text(shown.replace("$", r"\$"))  # words of users are no formulas
            inches = line.get_window_extent().width / figure.dpi
            return bool(inches <= width - _LEFT_INCHES - _TITLE_MARGIN_INCHES)

        if not fits(len(title)):
            # What fits is followed by what does not.
            num_letters = bisect_left(range(1, len(title)), True, key=lambda num: not fits(num))
            fits(num_letters)

    def _explain(self, figure: Figure) -> None:
        """The legend, right of the first line."""
        from matplotlib.patches import Patch

        width, height = self.size_inches
        handles = [
            Patch(color=self._colour(instrument), label=instrument_name(instrument))
            for instrument in [*(i for i in self.instruments if i != DRUMS), DRUMS]
            if instrument in self.instruments
        ]
        if handles:
            corner = (_LEFT_INCHES + self.line_inches + 0.1) / width
            free_inches = height - _TITLE_INCHES - self.signs_inches
            fitting = free_inches * _POINTS_PER_INCH / _LEADING / (len(handles) + 1)
            figure.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=(corner, free_inches / height),
                borderaxespad=0,
                fontsize=float(np.clip(fitting, _LEAST_LEGEND_POINTS, _LEGEND_POINTS)),
            )

    def _colour(self, instrument: int) -> tuple[float, float, float, float]:
        """Red, green, blue and opacity of an instrument."""
        from matplotlib import colormaps

        if instrument == DRUMS:
            return _DRUM_GREY, _DRUM_GREY, _DRUM_GREY, 1.0
        palette = colormaps["tab10" if len(self.melodic) <= 10 else "tab20"]
        return palette(self.melodic.index(instrument) % palette.N)

    def _draw_notes(self, axes: Axes, first: int, notes: np.ndarray, height: np.ndarray) -> None:
        """Notes as bars that are the paler, the softer they are.

        Args:
            axes: where.
            first: bar with which the line begins.
            notes: (N,) which.
            height: (N,) where each lies.
        """
        from matplotlib.collections import PolyCollection

        palette = np.array([self._colour(instrument) for instrument in self.instruments])
        place = np.searchsorted(self.instruments, self.piece.instrument[notes])
        loudness = self.piece.velocity[notes, None] / 127
        # Mixed with white and not transparent: over another one, a colour would be a third.
        strength = _LEAST_STRENGTH + (1 - _LEAST_STRENGTH) * loudness
        colours = 1 - strength * (1 - palette[place, :3])
        # Later instruments are slimmer, so that of two in unison both are seen.
        half = 0.45 * (1 - _SLIMMER * place / max(len(self.instruments) - 1, 1))
        right = np.minimum(self.right[notes], self._line_end(first))
        corners = _rectangles(self.left[notes], right, height, half)
        in_order = np.argsort(place, kind="stable")
        axes.add_collection(
            PolyCollection(list(corners[in_order]), facecolors=colours[in_order], linewidths=0)
        )

    def _line_end(self, first: int) -> float:
        """Where the line that begins with bar `first` ends; the last lets its notes ring on."""
        after = self.bar_after[first]
        return float(self.bar_starts[after]) if after < self.piece.num_bars else np.inf

    def _heard_in(self, first: int) -> np.ndarray:
        """(num_notes,) whether a note sounds in the line that begins with bar `first`."""
        return (self.left < self._line_end(first)) & (self.right > self.bar_starts[first])

    def _draw_melody(self, axes: Axes, first: int) -> None:
        """Pitches, with a mark at every C."""
        notes = np.flatnonzero((self.piece.instrument != DRUMS) & self._heard_in(first))
        self._draw_notes(axes, first, notes, self.piece.pitch[notes])
        low, high = self.lowest - 2, self.highest + 2
        axes.set_ylim(low, high)
        octaves = [pitch for pitch in range(0, 128, 12) if low <= pitch <= high]
        axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves], fontsize="small")
        axes.hlines(octaves, 0, self.bar_starts[-1], colors="0.9", linewidths=0.6, zorder=0)

    def _draw_drums(self, axes: Axes, first: int) -> None:
        """A row for each drum that is played."""
        notes = np.flatnonzero((self.piece.instrument == DRUMS) & self._heard_in(first))
        self._draw_notes(
            axes, first, notes, np.searchsorted(self.drum_keys, self.piece.pitch[notes])
        )
        num_keys = len(self.drum_keys)
        axes.set_ylim(-1, num_keys)
        every = int(np.ceil(_INCHES_PER_DRUM_NAME * (num_keys + 1) / self.drum_inches))
        rows = range(0, num_keys, every)
        names = [drum_name(int(self.drum_keys[row])) for row in rows]
        axes.set_yticks(rows, names, fontsize=6)
        axes.tick_params(axis="y", length=0)

    def _draw_bars(self, axes: Axes, first: int) -> None:
        """Bar lines of a line that begins with bar `first`."""
        start = self.bar_starts[first]
        axes.set_xlim(start, start + self.quarters_per_line)
        shown = slice(first, self.bar_after[first] + 1)
        low, high = axes.get_ylim()
        axes.vlines(self.bar_starts[shown], low, high, colors="0.75", linewidths=0.7, zorder=0)

    def _number_bars(self, axes: Axes, first: int) -> None:
        """Numbers below the bars, counted from 1; some, where not all find room."""
        every = _every(_INCHES_PER_BAR_NUMBER, self._inches_per_bar(first))
        bars = range(first, self.bar_after[first], every)
        axes.set_xticks(self.bar_starts[bars], [str(bar + 1) for bar in bars], fontsize="small")

    def _chord_bars(self, first: int) -> list[int]:
        """Bars of a line in which another chord begins."""
        return [
            bar
            for bar in range(first, self.bar_after[first])
            if self.signs[bar] and (bar == first or self.signs[bar] != self.signs[bar - 1])
        ]

    def _inches_between_chords(self, first: int) -> float:
        """Least room of a chord before the next one of its line."""
        apart = np.diff(self.bar_starts[self._chord_bars(first)])
        return float(apart.min(initial=np.inf) / self.quarters_per_line * self.line_inches)

    def _write_chords(self, axes: Axes, first: int) -> None:
        """Chords above the bars in which they begin; none where not all of a line find room."""
        inches = self._inches_between_chords(first)
        if inches < _INCHES_PER_TURNED_SIGN:
            return
        for bar in self._chord_bars(first):
            axes.annotate(
                self.signs[bar],
                (self.bar_starts[bar], 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize="small",
                rotation=0 if inches >= _INCHES_PER_SIGN else 90,
                va="bottom",
            )

    def _inches_per_bar(self, first: int) -> float:
        """The shortest bar of a line."""
        bars = np.diff(self.bar_starts[first : self.bar_after[first] + 1])
        return float(bars.min() / self.quarters_per_line * self.line_inches)


def _line_breaks(bar_starts: np.ndarray) -> list[int]:
    """First bar of each line: lines of as many quarters as a few usual bars have, but not too many.

    Args:
        bar_starts: (num_bars + 1,) quarters.

    >>> _line_breaks(4.0 * np.arange(41))
    [0, 16, 32]
    """
    num_bars, whole = len(bar_starts) - 1, float(bar_starts[-1])
    longest = float(np.diff(bar_starts).max())
    quarters = max(_BARS_PER_LINE * whole / num_bars, longest)
    if num_bars > _BARS_PER_LINE * _MAX_LINES:
        quarters = whole / _MAX_LINES + longest
    breaks = [0]
    for bar in range(1, num_bars):
        if bar_starts[bar + 1] - bar_starts[breaks[-1]] > quarters + 1e-6:
            breaks.append(bar)
    return breaks


def _every(wanted_inches: float, inches: float) -> int:
    """Of how many bars one can be marked.

    >>> _every(0.3, 0.7), _every(0.3, 0.1)
    (1, 3)
    """
    return int(np.ceil(wanted_inches / inches))


def _rectangles(
    left: np.ndarray, right: np.ndarray, height: np.ndarray, half: np.ndarray
) -> np.ndarray:
    """(N, 4, 2) corners; a little narrower than the note, so that repeated notes stay apart."""
    right = np.maximum(right - 0.03, left + 0.02)
    low, high = height - half, height + half
    return np.stack(
        [
            np.stack([left, low], axis=1),
            np.stack([left, high], axis=1),
            np.stack([right, high], axis=1),
            np.stack([right, low], axis=1),
        ],
        axis=1,
    )
