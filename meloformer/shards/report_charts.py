"""The drawings of a report: inline SVG and bars of plain HTML, no script, nothing from a network.

Colours are CSS variables of report_page, so that a drawing follows the reader's light or dark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from meloformer.shards.piece_statistics import Histogram

_WIDTH, _HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _BASE = 8, 8, 12, 108
_WIDEST_COLUMN = 40
_MOST_BINS = 40
_FEWEST_TICKS, _MOST_TICKS = 3, 6


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart.

    Args:
        label: what is counted.
        count: how often.
        note: said in muted words behind the count.
    """

    label: str
    count: int
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A curve and its name.

    Args:
        name: for the legend and the tips.
        values: (N,) 0..1.
        colour: CSS variable.
    """

    name: str
    values: Sequence[float]
    colour: str


def short(value: float) -> str:
    """A number in few characters.

    >>> short(0.25), short(7.5), short(66.4), short(8192), short(12_113_517)
    ('0.25', '7.5', '66', '8,192', '12.1 M')
    """
    for size, suffix in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {suffix}"
    if value >= 1e5:
        return f"{value / 1e3:.0f} k"
    return f"{value:,.0f}" if value >= 20 or value == int(value) else f"{value:.2g}"


def percent(share: float) -> str:
    """A share for people: never 0 or 100 % unless it is.

    >>> percent(0.5), percent(0.00002), percent(0.99999), percent(1.0)
    ('50.0 %', '< 0.1 %', '> 99.9 %', '100 %')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def length_text(seconds: float) -> str:
    """A time as people say it.

    >>> length_text(7), length_text(169.5), length_text(7300)
    ('7 s', '2 min 50 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def log_histogram(
    histogram: Histogram,
    *,
    name: str,
    text: Callable[[float], str] = short,
    edges: np.ndarray | None = None,
    ticks: Sequence[float] | None = None,
) -> str:
    """A histogram over a logarithmic axis; areas are pieces.

    Args:
        histogram: at least one value.
        name: of the quantity, for the tips.
        text: says a value in words.
        edges: ascending and positive, from under the smallest value to over the largest.
        ticks: values named on the axis.
    """
    if edges is None:
        edges = _log_edges(histogram)
    counts = histogram.counts_between(edges)
    widths = np.diff(np.log(edges))
    density = counts / widths
    scale = _LogAxis(float(edges[0]), float(edges[-1]))
    tallest = float(density.max(initial=0)) or 1.0
    shapes = []
    for left, right, count, height in zip(edges[:-1], edges[1:], counts, density, strict=True):
        if not count:
            continue
        x, end = scale(left), scale(right)
        y = _BASE - (_BASE - _TOP) * float(height) / tallest
        tip = f"{_span(left, right, histogram.unit, text)}: {count:,} pieces"
        shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(end - x - 0.8, 0.8):.1f}" '
            f'height="{_BASE - y:.1f}"><title>{escape(tip)}</title></rect>'
        )
    median = scale(histogram.quantile(0.5))
    shapes.append(f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="0" y2="{_BASE}"/>')
    axis = _axis(scale, ticks or _log_ticks(float(edges[0]), float(edges[-1])), text)
    return _svg(f'<g class="bars">{"".join(shapes)}</g>{axis}', f"Histogram of {name}")


def log_curves(
    values: Sequence[float], lines: Sequence[Line], *, marks: Sequence[float], label: str
) -> str:
    """Shares over a logarithmic axis of powers of two, with dots at the marked values."""
    scale = _LogAxis(values[0], values[-1])
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{y - 3:.1f}" text-anchor="end">{share:.0%}'
        "</text>"
        for share in (0.5, 1.0)
        for y in [_share_y(share)]
    )
    shapes = []
    for line in lines:
        points = " ".join(
            f"{scale(x):.1f},{_share_y(y):.1f}" for x, y in zip(values, line.values, strict=True)
        )
        shapes.append(f'<polyline class="curve" style="stroke:{line.colour}" points="{points}"/>')
        for mark in marks:
            share = line.values[list(values).index(mark)]
            shapes.append(
                f'<circle cx="{scale(mark):.1f}" cy="{_share_y(share):.1f}" r="3" '
                f'style="fill:{line.colour}"><title>{escape(line.name)} at {short(mark)} tokens: '
                f"{percent(share)}</title></circle>"
            )
    doubled = [value for value in values if float(np.log2(value)).is_integer()]
    axis = _axis(scale, doubled, tokens_text)
    legend = "".join(
        f'<span><i style="background:{line.colour}"></i>{escape(line.name)}</span>'
        for line in lines
    )
    return f'{_svg(grid + "".join(shapes) + axis, label)}<p class="legend">{legend}</p>'


def tokens_text(tokens: float) -> str:
    """A row length as people call it.

    >>> tokens_text(512), tokens_text(8192)
    ('512', '8k')
    """
    return f"{tokens / 1024:g}k" if tokens >= 1024 else f"{tokens:g}"


def bar_chart(
    bars: Sequence[Bar], total: int, *, colour: str = "var(--first)", long_labels: bool = False
) -> str:
    """Bars that lie down, one under the other, each with its count and its share of a total."""
    longest = max((bar.count for bar in bars), default=0) or 1
    rows = "".join(
        f'<li><span class="label" title="{escape(bar.label)}">{escape(bar.label)}</span>'
        f'<span class="track"><i style="width:{100 * bar.count / longest:.1f}%;'
        f'background:{colour}"></i></span>'
        f'<span class="count">{bar.count:,}</span>'
        f'<span class="share">{escape(bar.note) or percent(bar.count / max(total, 1))}</span></li>'
        for bar in bars
    )
    return f'<ul class="bars{" long" * long_labels}">{rows}</ul>'


def columns(groups: Sequence[tuple[str, Sequence[int]]], names: Sequence[str], label: str) -> str:
    """Upright bars in groups side by side: one group a name, one colour a series.

    Args:
        groups: (name of the series, its (N,) counts), at most two.
        names: (N,) under the bars.
        label: for readers that cannot see it.
    """
    tallest = max((count for _, counts in groups for count in counts), default=0) or 1
    step = (_WIDTH - _LEFT - _RIGHT) / len(names)
    width = min(step * 0.8 / len(groups), _WIDEST_COLUMN)
    num_shown = 0
    colours = ("var(--first)", "var(--second)")
    shapes = []
    for place, name in enumerate(names):
        x = _LEFT + step * (place + 0.5) - width * len(groups) / 2
        for series, (series_name, counts) in enumerate(groups):
            height = (_BASE - _TOP) * counts[place] / tallest
            shapes.append(
                f'<rect x="{x + series * width:.1f}" y="{_BASE - height:.1f}" '
                f'width="{width - 0.6:.1f}" height="{height:.1f}" style="fill:{colours[series]}">'
                f"<title>{escape(name)} {escape(series_name)}: {counts[place]:,} pieces</title>"
                "</rect>"
            )
            if counts[place] == tallest and not num_shown:  # which says how tall the others are
                num_shown += 1
                shapes.append(
                    f'<text class="tick" x="{x + (series + 0.5) * width:.1f}" y="{_TOP - 3}" '
                    f'text-anchor="middle">{tallest:,}</text>'
                )
        shapes.append(
            f'<text class="tick" x="{_LEFT + step * (place + 0.5):.1f}" y="{_BASE + 15}" '
            f'text-anchor="middle">{escape(name)}</text>'
        )
    base = f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_BASE}" y2="{_BASE}"/>'
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(series_name)}</span>'
        for (series_name, _), colour in zip(groups, colours, strict=False)
    )
    svg = _svg("".join(shapes) + base, label)
    return f'{svg}<p class="legend">{legend}</p>' if len(groups) > 1 else svg


class _LogAxis:
    """Maps a value to its x."""

    def __init__(self, low: float, high: float) -> None:
        self._low = np.log(low)
        self._scale = (_WIDTH - _LEFT - _RIGHT) / (np.log(high) - self._low)

    def __call__(self, value: float) -> float:
        place = _LEFT + float((np.log(max(value, 1e-9)) - self._low) * self._scale)
        return min(max(place, _LEFT), _WIDTH - _RIGHT)


def _log_edges(histogram: Histogram) -> np.ndarray:
    """Edges half a unit beside whole units, so that none falls on a value; 0 joins the first."""
    low = max(histogram.quantile(0.0), histogram.unit) - histogram.unit / 2
    high = max(histogram.largest, low * 1.5) + histogram.unit / 2
    edges = np.geomspace(low, high, _MOST_BINS + 1)
    snapped = (np.rint(edges / histogram.unit - 0.5) + 0.5) * histogram.unit
    return np.unique(np.round(snapped, 9))


def _log_ticks(low: float, high: float) -> list[float]:
    candidates = [digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5)]
    inside = [value for value in candidates if low <= value <= high]
    if len(inside) < _FEWEST_TICKS:
        finer = (digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 3, 4, 5, 6, 8))
        return [value for value in finer if low <= value <= high]
    if len(inside) > _MOST_TICKS:
        inside = [value for value in inside if f"{value:e}".startswith("1")]
    return inside[:: -(-len(inside) // _MOST_TICKS) or 1]


def _span(left: float, right: float, unit: float, text: Callable[[float], str]) -> str:
    """The values between two edges: they lie half a unit inside."""
    first, last = left + unit / 2, right - unit / 2
    return text(first) if last - first < unit / 2 else f"{text(first)} to {text(last)}"


def _axis(scale: _LogAxis, ticks: Sequence[float], text: Callable[[float], str]) -> str:
    marks = []
    for value in ticks:
        x = scale(value)
        anchor = "start" if x < _LEFT + 14 else "end" if x > _WIDTH - _RIGHT - 14 else "middle"
        marks.append(
            f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{_BASE}" y2="{_BASE + 4}"/>'
            f'<text class="tick" x="{x:.1f}" y="{_BASE + 16}" text-anchor="{anchor}">'
            f"{escape(text(value))}</text>"
        )
    base = f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_BASE}" y2="{_BASE}"/>'
    return base + "".join(marks)


def _share_y(share: float) -> float:
    return _BASE - (_BASE - _TOP) * share


def _svg(content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{content}</svg>"
    )
