"""The drawings of a report on statistics: several sets of pieces in one picture, as inline SVG."""

import base64
import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from meloformer.midi.grid import METRE_STEPS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.sound import SAMPLE_RATE, note_seconds, synthesise
from meloformer.shards.report_charts import short

# One colour a set, in the order of sets; more sets begin again.
COLOURS = tuple(f"var(--{name})" for name in ("first", "second", "third", "fourth", "fifth"))
STYLE = """
:root{--fourth:#5b8c5a;--fifth:#7a5f9b}
@media(prefers-color-scheme:dark){:root{--fourth:#8fc08d;--fifth:#b09ad0}}
section figure{margin-top:26px}
svg.roll{max-width:none;background:var(--track);border-radius:3px}
svg .fill{stroke:none;opacity:.18}
audio{width:100%;height:34px;margin-top:6px}
td.apart{color:var(--third);font-weight:600}
td small{color:var(--muted);font-size:12px}
table.wrap td:first-child{white-space:normal;min-width:220px}
"""

_WIDTH, _HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _BASE = 30, 8, 10, 108
_MOST_BINS = 24
_NUM_TICKS = 5
_ROLL_WIDTH, _ROLL_HEIGHT = 1000, 170
_MOST_ROLL_NOTES = 4000


@dataclass(frozen=True, eq=False)
class Series:
    """What is drawn of one set.

    Args:
        name: of the set.
        values: as the drawing wants them.
        colour: CSS.
    """

    name: str
    values: np.ndarray
    colour: str


def legend(series: Sequence[Series]) -> str:
    """Colour and name of each."""
    return (
        '<p class="legend">'
        + "".join(
            f'<span><i style="background:{one.colour}"></i>{escape(one.name)}</span>'
            for one in series
        )
        + "</p>"
    )


def distributions(
    series: Sequence[Series], label: str, text: Callable[[float], str] = short
) -> str:
    """Histograms over one another, each of area 1: shares of pieces by value.

    Args:
        series: (P,) values of each set's pieces; nan does not count.
        label: of the quantity.
        text: says a value in words.
    """
    told = [one.values[~np.isnan(one.values)] for one in series]
    joined = np.concatenate(told)
    if not len(joined):
        return '<p class="muted">Nothing to say of these pieces.</p>'
    edges = _edges(joined)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in told]
    tallest = max(float(of.max()) for of in shares) or 1.0
    x = _axis_of(edges[0], edges[-1])
    shapes = []
    for one, of_bins in zip(series, shares, strict=True):
        y = _BASE - (_BASE - _TOP) * of_bins / tallest
        corners = " ".join(
            f"{x(left):.1f},{height:.1f} {x(right):.1f},{height:.1f}"
            for left, right, height in zip(edges[:-1], edges[1:], y, strict=True)
        )
        closed = f"{x(edges[0]):.1f},{_BASE} {corners} {x(edges[-1]):.1f},{_BASE}"
        shapes.append(
            f'<polygon class="fill" style="fill:{one.colour}" points="{closed}"/>'
            f'<polyline class="curve" style="stroke:{one.colour}" points="{closed}">'
            f"<title>{escape(one.name)}</title></polyline>"
        )
    ticks = _ticks(float(edges[0]), float(edges[-1]))
    top = (
        f'<text class="tick" x="{_LEFT - 4}" y="{_TOP + 4}" text-anchor="end">{tallest:.0%}</text>'
    )
    return _svg("".join(shapes) + top + _axis(x, ticks, text), f"Distribution of {label}")


def curves(
    x_values: Sequence[float],
    series: Sequence[Series],
    label: str,
    *,
    ticks: Sequence[float] = (),
    low: float = 0.0,
    y_text: Callable[[float], str] = lambda value: f"{value:.0%}",
    x_text: Callable[[float], str] = short,
) -> str:
    """Lines over an axis; nan leaves a gap out.

    Args:
        x_values: (N,) ascending.
        series: (N,) values of each set.
        label: of the quantity.
        ticks: places that are named on the axis; all if none are given.
        low: where the upright axis begins.
        y_text: says a value.
        x_text: says a place on the axis.
    """
    finite = np.concatenate([one.values[~np.isnan(one.values)] for one in series])
    if not len(finite):
        return '<p class="muted">Nothing to say of these pieces.</p>'
    high = max(float(finite.max()) * 1.05, low + 1e-9)
    x = _axis_of(x_values[0], max(x_values[-1], x_values[0] + 1e-9))

    def y(value: float) -> float:
        return float(_BASE - (_BASE - _TOP) * (value - low) / (high - low))

    shapes = []
    for value in np.linspace(low, high / 1.05, 3)[1:].tolist():
        shapes.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text class="tick" x="{_LEFT - 4}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{escape(y_text(value))}</text>'
        )
    for one in series:
        places = [
            (x(at), y(value))
            for at, value in zip(x_values, one.values.tolist(), strict=True)
            if not np.isnan(value)
        ]
        points = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        shapes.append(
            f'<polyline class="curve" style="stroke:{one.colour}" points="{points}">'
            f"<title>{escape(one.name)}</title></polyline>"
        )
    return _svg("".join(shapes) + _axis(x, ticks or x_values, x_text), label)


def columns(names: Sequence[str], series: Sequence[Series], label: str) -> str:
    """Upright bars, one group a name and one bar a set.

    Args:
        names: (N,) under the bars.
        series: (N,) shares of each set.
        label: of the quantity.
    """
    tallest = max(float(one.values.max(initial=0)) for one in series) or 1.0
    step = (_WIDTH - _LEFT - _RIGHT) / len(names)
    width = step * 0.8 / len(series)
    shapes = []
    for place, name in enumerate(names):
        x = _LEFT + step * (place + 0.1)
        for number, one in enumerate(series):
            height = (_BASE - _TOP) * float(one.values[place]) / tallest
            shapes.append(
                f'<rect x="{x + number * width:.1f}" y="{_BASE - height:.1f}" '
                f'width="{max(width - 0.5, 0.5):.1f}" height="{height:.1f}" '
                f'style="fill:{one.colour}"><title>{escape(f"{name}, {one.name}: ")}'
                f"{float(one.values[place]):.1%}</title></rect>"
            )
        shapes.append(
            f'<text class="tick" x="{_LEFT + step * (place + 0.5):.1f}" y="{_BASE + 15}" '
            f'text-anchor="middle">{escape(name)}</text>'
        )
    base = f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_BASE}" y2="{_BASE}"/>'
    top = (
        f'<text class="tick" x="{_LEFT - 4}" y="{_TOP + 4}" text-anchor="end">{tallest:.0%}</text>'
    )
    return _svg("".join(shapes) + base + top, label)


def piano_roll(music: QuantisedPiece, seconds: float) -> str:
    """The first seconds of a piece: time to the right, pitch up, one colour an instrument."""
    start, end = note_seconds(music)
    shown = np.flatnonzero(start < seconds)[:_MOST_ROLL_NOTES]
    if not len(shown):
        return '<p class="muted">Silence.</p>'
    last = min(float(end[shown].max()), seconds)
    low, high = int(music.pitch[shown].min()) - 2, int(music.pitch[shown].max()) + 2
    across, up = _ROLL_WIDTH / last, _ROLL_HEIGHT / (high - low + 1)
    lines = "".join(
        f'<line class="grid" x1="{at * across:.1f}" x2="{at * across:.1f}" y1="0" '
        f'y2="{_ROLL_HEIGHT}"/>'
        for at in _bar_seconds(music).tolist()
        if at < last
    )
    shapes = []
    for number, instrument in enumerate(np.unique(music.instrument[shown]).tolist()):
        notes = shown[music.instrument[shown] == instrument]
        path = "".join(
            f"M{x:.1f} {y:.1f}h{width:.1f}v{up:.1f}h-{width:.1f}z"
            for x, y, width in zip(
                start[notes] * across,
                (high - music.pitch[notes]) * up,
                np.maximum((np.minimum(end[notes], last) - start[notes]) * across - 0.8, 0.8),
                strict=True,
            )
        )
        name = "drums" if instrument == 0 else f"program {instrument - 1}"
        colour = COLOURS[number % len(COLOURS)]
        shapes.append(f'<path d="{path}" style="fill:{colour}"><title>{name}</title></path>')
    return (
        f'<svg class="roll" viewBox="0 0 {_ROLL_WIDTH} {_ROLL_HEIGHT}" role="img" '
        f'aria-label="Piano roll">{lines}{"".join(shapes)}</svg>'
    )


def player(music: QuantisedPiece, seconds: float) -> str:
    """The first seconds of a piece to hear: WAV inside the page."""
    sound = synthesise(music, max_seconds=seconds)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes((sound * 32767).astype("<i2").tobytes())
    data = base64.b64encode(file.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'


def player_bytes(seconds: float) -> int:
    """Bytes that a player of so many seconds takes in the page."""
    return int(seconds * SAMPLE_RATE * 2 * 4 / 3)


def _bar_seconds(music: QuantisedPiece) -> np.ndarray:
    """(num_bars,) when each bar begins."""
    steps = METRE_STEPS[music.bar_metre]
    lengths = steps * 60 / (TEMPOS_BPM[music.bar_tempo] * STEPS_PER_QUARTER)
    return np.concatenate([[0.0], np.cumsum(lengths)[:-1]])


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins that hold all values: half beside whole numbers, where all are whole.

    >>> _edges(np.array([1.0, 3.0])).tolist()
    [0.5, 1.5, 2.5, 3.5]
    """
    low, high = float(values.min()), float(values.max())
    if (values == np.rint(values)).all():
        width = -(-(int(high - low) + 1) // _MOST_BINS)
        return np.arange(low - 0.5, high + 0.5 + width, width)
    margin = max((high - low) * 0.02, 1e-6)
    return np.linspace(low - margin, high + margin, _MOST_BINS + 1)


def _ticks(low: float, high: float) -> list[float]:
    """A few round values between two ends.

    >>> _ticks(0.5, 12.5)
    [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    rough = (high - low) / _NUM_TICKS
    size = 10 ** np.floor(np.log10(rough))
    step = float(min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough)) * size)
    first = np.ceil(low / step)
    # Adding 0 makes a zero from below a plain one.
    return [round(float(number * step), 9) + 0.0 for number in np.arange(first, high / step)]


def _axis_of(low: float, high: float) -> Callable[[float], float]:
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)
    return lambda value: float(_LEFT + (value - low) * scale)


def _axis(x: Callable[[float], float], ticks: Sequence[float], text: Callable[[float], str]) -> str:
    marks = "".join(
        f'<line class="base" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_BASE}" '
        f'y2="{_BASE + 4}"/><text class="tick" x="{x(value):.1f}" y="{_BASE + 16}" '
        f'text-anchor="middle">{escape(text(value))}</text>'
        for value in ticks
    )
    return (
        f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_BASE}" y2="{_BASE}"/>{marks}'
    )


def _svg(content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{content}</svg>"
    )
