"""A picture of a quantised piece: time to the right, pitch up, one colour per instrument."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meloformer.midi.grid import DRUMS, STEPS_PER_QUARTER
from meloformer.midi.quantised import QuantisedPiece

_INCHES_PER_BAR = 0.7
_MIN_WIDTH_INCHES, _MAX_WIDTH_INCHES, _HEIGHT_INCHES = 8.0, 40.0, 4.5
_MAX_LEGEND_ROWS = 16
_LEAST_OPACITY = 0.35  # the softest note can still be seen


def save_piano_roll(quantised: QuantisedPiece, path: Path | str, *, title: str = "") -> None:
    """Draw a piece as a PNG.

    Args:
        quantised: the piece.
        path: file to write.
        title: a line above the picture.
    """
    # Figure and canvas without pyplot: no global state, no window, safe in any thread.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    starts = quantised.bar_start_steps / STEPS_PER_QUARTER
    left = starts[quantised.bar] + quantised.onset_steps / STEPS_PER_QUARTER
    right = left + quantised.duration_steps / STEPS_PER_QUARTER
    width = np.clip(_INCHES_PER_BAR * quantised.num_bars, _MIN_WIDTH_INCHES, _MAX_WIDTH_INCHES)
    figure = Figure(figsize=(float(width), _HEIGHT_INCHES), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()

    handles = []
    instruments = np.unique(quantised.instrument)
    palette = colormaps["tab10" if len(instruments) <= 10 else "tab20"]
    for colour_index, instrument in enumerate(instruments.tolist()):
        mine = quantised.instrument == instrument
        colour = np.array(palette(colour_index % palette.N))
        colours = np.repeat(colour[None], np.count_nonzero(mine), axis=0)
        loudness = quantised.velocity[mine] / 127
        colours[:, 3] = _LEAST_OPACITY + (1 - _LEAST_OPACITY) * loudness
        corners = _rectangles(left[mine], right[mine], quantised.pitch[mine])
        axes.add_collection(PolyCollection(list(corners), facecolors=colours, linewidths=0))
        name = "drums" if instrument == DRUMS else f"program {instrument - 1}"
        handles.append(Patch(color=palette(colour_index % palette.N), label=name))

    axes.vlines(starts, -1, 128, colors="0.8", linewidths=0.6, zorder=0)
    lowest, highest = (quantised.pitch.min(), quantised.pitch.max()) if len(left) else (48, 72)
    axes.set_xlim(0, max(starts[-1], right.max(initial=0.0)))
    axes.set_ylim(int(lowest) - 2, int(highest) + 2)
    every = max(1, quantised.num_bars // 24)
    axes.set_xticks(
        starts[:-1:every], [str(bar + 1) for bar in range(0, quantised.num_bars, every)]
    )
    octaves = [pitch for pitch in range(0, 128, 12) if lowest - 2 <= pitch <= highest + 2]
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
    axes.set_xlabel("bar")
    # Words of users are no formulas.
    axes.set_title(title.replace("$", r"\$"), wrap=True)
    if handles:
        columns = -(-len(handles) // _MAX_LEGEND_ROWS)
        figure.legend(handles=handles, loc="outside right upper", fontsize="small", ncols=columns)
    figure.savefig(path, dpi=120)


def _rectangles(left: np.ndarray, right: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """(N, 4, 2) corners; a little narrower than the note, so that repeated notes stay apart."""
    right = np.maximum(right - 0.03, left + 0.02)
    low, high = pitch - 0.45, pitch + 0.45
    return np.stack(
        [
            np.stack([left, low], axis=1),
            np.stack([left, high], axis=1),
            np.stack([right, high], axis=1),
            np.stack([right, low], axis=1),
        ],
        axis=1,
    )
