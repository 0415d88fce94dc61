"""A report as one HTML page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from meloformer.midi.grid import TEMPOS_BPM
from meloformer.shards.manifest import SPLITS
from meloformer.shards.piece_statistics import TOTALS, Histogram, PieceStatistics, family_of
from meloformer.shards.quantised_words import quantised_words
from meloformer.shards.report_charts import (
    Bar,
    Line,
    bar_chart,
    columns,
    length_text,
    log_curves,
    log_histogram,
    percent,
    short,
    tokens_text,
)
from meloformer.shards.report_parts import card, page, table
from meloformer.tokens.vocabulary import NUM_KEYS, PITCH_CLASSES, key_name

ROW_LENGTHS = (1024, 2048, 4096, 8192, 16384)
_CURVE_LENGTHS = tuple(round(2 ** (quarters / 4)) for quarters in range(8 * 4, 16 * 4 + 1))

# Eight programs each, in the order of General MIDI.
_FAMILIES = (
    *("piano", "chromatic perc.", "organ", "guitar", "bass", "strings", "ensemble", "brass"),
    *("reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive"),
    "sound effects",
)
_SHARES = "pieces that hold one, and their share"
_PROGRAMS = f"{_SHARES}; #P0 to #P127 are General MIDI's programs counted from 0, #D is the drums"
_OFF_GRID_LIMITS = (0.0, 0.01, 0.05, 0.2, 1.0)
_MOST_BARS = 12
_TEMPO_TICKS = (30, 60, 90, 120, 180, 240)
_TIME_TICKS = (5, 10, 15, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200, 14400)
_FEW_TIME_TICKS = (5, 15, 60, 300, 1200, 3600, 14400)
_MOST_TIME_TICKS = 5


def report_page(
    statistics: PieceStatistics,
    rejected: Mapping[str, int],
    num_duplicates: int,
    cluster_sizes: Mapping[int, int],
    *,
    title: str,
) -> str:
    """The whole page.

    Args:
        statistics: of all pieces.
        rejected: files by reason.
        num_duplicates: exact copies left out.
        cluster_sizes: number of clusters of near copies by number of pieces, single ones too.
        title: what was read.
    """
    parts = [
        _head(statistics, title),
        _files(statistics, rejected, num_duplicates),
    ]
    if statistics.num_pieces:
        parts += [
            _lengths(statistics),
            _coverage(statistics),
            _music(statistics),
            _copies(statistics, num_duplicates, cluster_sizes),
            _quality(statistics),
        ]
    footer = "One row for each piece, with all of these columns: pieces.parquet"
    return page(title, parts, footer)


def _head(statistics: PieceStatistics, title: str) -> str:
    tiles = {what: short(statistics.total(what)) for what in TOTALS}
    tiles["of music"] = f"{statistics.total_seconds / 3600:,.0f} h"
    if statistics.total_seconds < 3600 * 10:
        tiles["of music"] = length_text(statistics.total_seconds)
    cells = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for name, value in tiles.items())
    return (
        f'<h1>{escape(title)}</h1><p class="lead">What these MIDI files hold, and what a build '
        f'makes of them.</p><dl class="tiles">{cells}</dl>'
    )


def _files(statistics: PieceStatistics, rejected: Mapping[str, int], num_duplicates: int) -> str:
    pieces, num_rejected = statistics.num_pieces, sum(rejected.values())
    num_in = pieces + num_duplicates + num_rejected
    parts = (
        ("pieces", pieces, "var(--first)"),
        ("duplicates", num_duplicates, "var(--second)"),
        ("rejected", num_rejected, "var(--third)"),
    )
    stack = "".join(
        f'<i style="flex:{count};background:{colour}" title="{count:,} {name}"></i>'
        for name, count, colour in parts
        if count
    )
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{count:,} {name} '
        f"({percent(count / max(num_in, 1))})</span>"
        for name, count, colour in parts
    )
    bars = [Bar(reason, count) for reason, count in _by_count(rejected)]
    reasons = (
        card(
            "Rejected, by reason",
            bar_chart(bars, num_in, colour="var(--third)"),
            "files, and their share of all files",
        )
        if bars
        else card("Rejected, by reason", '<p class="muted">None.</p>')
    )
    rows = [
        [name or "not split", *(f"{counts[what]:,}" for what in TOTALS)]
        for name in ("", *SPLITS)
        for counts in [statistics.splits.get(name)]
        if counts is not None
    ]
    rows.append(["all", *(f"{statistics.total(what):,}" for what in TOTALS)])
    return (
        f"<h2>Files</h2><p>{num_in:,} files in = {pieces:,} pieces + {num_duplicates:,} duplicates "
        f"+ {num_rejected:,} rejected.</p>"
        f'<div class="stack">{stack}</div><p class="legend">{legend}</p>'
        f'<div class="cards wide">{reasons}{card("Pieces", table(["", *TOTALS], rows))}</div>'
    )


def _lengths(statistics: PieceStatistics) -> str:
    cards = [
        _quantity("Tokens", "tokens a piece", statistics.tokens),
        _quantity("Bars", "bars a piece", statistics.bars),
        _quantity("Duration", "a piece", statistics.seconds, times=True),
        _quantity("Notes", "notes a piece", statistics.notes),
        _quantity("Tokens per bar", "tokens a bar", statistics.tokens_per_bar),
        _quantity("Notes per bar", "notes a bar", statistics.notes_per_bar),
    ]
    return (
        '<h2>Length</h2><p class="muted">The large figure and the dashed line are the median; '
        "the axes below are logarithmic, and areas stand for numbers of pieces.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _quantity(title: str, unit: str, histogram: Histogram, *, times: bool = False) -> str:
    text = length_text if times else short
    low, median, high = (text(histogram.quantile(share)) for share in (0.05, 0.5, 0.95))
    low_end, high_end = histogram.quantile(0), histogram.largest
    ticks = [t for t in _TIME_TICKS if times and low_end <= t <= high_end]
    if len(ticks) > _MOST_TIME_TICKS:
        ticks = [t for t in ticks if t in _FEW_TIME_TICKS]
    drawing = log_histogram(
        histogram,
        name=title.lower(),
        text=_short_time if times else short,
        ticks=ticks or None,
    )
    return card(
        title,
        f'<div class="big">{median} <small>{unit}</small></div>{drawing}',
        f"5 to 95 %: {low} to {high}; at most {text(histogram.largest)}",
    )


def _short_time(seconds: float) -> str:
    """A time on an axis.

    >>> _short_time(15), _short_time(300), _short_time(7200)
    ('15 s', '5 min', '2 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


def _coverage(statistics: PieceStatistics) -> str:
    tokens = statistics.tokens
    lines = [
        Line(
            "pieces that fit whole",
            [tokens.share_up_to(length) for length in _CURVE_LENGTHS],
            "var(--first)",
        ),
        Line(
            "tokens seen with all that went before",
            [tokens.weight_within(length) for length in _CURVE_LENGTHS],
            "var(--second)",
        ),
    ]
    rows = [
        [
            tokens_text(length),
            percent(tokens.share_up_to(length)),
            percent(tokens.weight_up_to(length)),
            percent(tokens.weight_within(length)),
            _longer_bars(statistics, length),
        ]
        for length in ROW_LENGTHS
    ]
    curves = log_curves(_CURVE_LENGTHS, lines, marks=ROW_LENGTHS, label="Coverage by row length")
    head = ["row", "pieces fit", "their tokens", "tokens seen", "bar too long"]
    records = [
        [name, f"{found.tokens:,}", found.split, found.key, found.source]
        for what, name in (("piece", "longest piece"), ("bar", "longest bar"))
        if (found := statistics.longest.get(what)) is not None
    ]
    return (
        "<h2>Coverage</h2><p>How much a row of so many tokens holds: the pieces that fit whole, "
        "the tokens in these, and the tokens seen together with all that went before them in their "
        "piece. The last column counts the pieces with a bar that no such row holds, its prefix "
        "included: training with that --max_seq_len stops at them.</p>"
        f'<div class="cards wide">{card("", curves, "along the axis: tokens in a row")}'
        f"{card('', table(head, rows))}</div>"
        + card("", table(["", "tokens", "split", "key", "source"], records))
    )


def _longer_bars(statistics: PieceStatistics, length: int) -> str:
    """How many pieces have a bar that a row of so many tokens does not hold."""
    bars = statistics.longest_bar
    if not bars.total:
        return "-"
    return f"{round(bars.total * (1 - bars.share_up_to(length))):,}"


def _music(statistics: PieceStatistics) -> str:
    pieces = statistics.num_pieces
    families = [
        Bar(_family_name(family), count)
        for family, count in sorted(statistics.families.items(), key=lambda item: -item[1])
    ]
    programs = [Bar(_named(name), count) for name, count in _by_count(statistics.instruments)]
    metres = [Bar(name, count) for name, count in _by_count(statistics.metres)]
    keys = [statistics.keys[key_name(index)] for index in range(NUM_KEYS)]
    tempos = statistics.tempo_bpm
    half_step = 2 ** (1 / 32)
    edges = np.append(TEMPOS_BPM[::2] / half_step, TEMPOS_BPM[-1] * half_step)
    tempo_card = card(
        "Tempo",
        f'<div class="big">{short(tempos.quantile(0.5))} <small>quarters a minute</small></div>'
        + log_histogram(tempos, name="tempo", edges=edges, ticks=_TEMPO_TICKS),
        f"5 to 95 %: {short(tempos.quantile(0.05))} to {short(tempos.quantile(0.95))}; the "
        f"tempo changes in {percent(statistics.several_tempos / pieces)} of the pieces",
    )
    key_card = card(
        "Keys",
        columns((("major", keys[:12]), ("minor", keys[12:])), PITCH_CLASSES, "Pieces by key"),
        "pieces by the key that their notes suggest; "
        f"{percent(1 - sum(keys) / pieces)} have none (drums alone)",
    )
    counts = statistics.num_instruments
    most = int(counts.largest)
    shown = min(most, _MOST_BARS)
    per_count = counts.counts_between(np.append(np.arange(1, shown + 1), most + 1))
    names = [str(number) for number in range(1, shown + 1)]
    names[-1] += "+" if most > shown else ""
    ensemble = card(
        "Instruments a piece",
        columns((("pieces", per_count.tolist()),), names, "Pieces by number of instruments"),
        f"pieces by how many instruments they hold, drums as one; at most {most}",
    )
    return (
        '<h2>Music</h2><div class="cards">'
        f"{tempo_card}{key_card}{ensemble}</div>"
        '<div class="cards">'
        f"{card('Instruments, by family', bar_chart(families, pieces), _SHARES)}"
        f"{card('Programs', _most(programs, pieces), _PROGRAMS)}"
        f"{card('Metres', _most(metres, pieces), _changes(statistics))}</div>"
    )


def _family_name(family: int) -> str:
    return "drums" if family < 0 else _FAMILIES[family]


def _named(instrument: str) -> str:
    """An instrument with the name of its family.

    >>> _named("#P40"), _named("#D")
    ('#P40 strings', '#D drums')
    """
    return f"{instrument} {_family_name(family_of(instrument))}"


def _changes(statistics: PieceStatistics) -> str:
    share = percent(statistics.several_metres / statistics.num_pieces)
    return f"pieces that hold it, and their share; the metre changes in {share} of the pieces"


def _copies(
    statistics: PieceStatistics, num_duplicates: int, cluster_sizes: Mapping[int, int]
) -> str:
    clusters = {size: count for size, count in cluster_sizes.items() if size > 1}
    pieces = sum(size * count for size, count in clusters.items())
    said = (
        f"{num_duplicates:,} files repeat another note for note and are left out. "
        f"{pieces:,} pieces ({percent(pieces / statistics.num_pieces)}) stand in "
        f"{sum(clusters.values()):,} clusters of near copies; a cluster never crosses the splits."
    )
    if not cluster_sizes:
        said = f"{num_duplicates:,} files repeat another note for note and are left out."
    bounds = ((2, 2), (3, 3), (4, 7), (8, 15), (16, 63), (64, None))
    bars = [
        Bar(
            f"{low} pieces"
            if low == high
            else f"{low} or more"
            if high is None
            else f"{low} to {high}",
            count,
            note=f"{inside:,}",
        )
        for low, high in bounds
        for found in [{s: c for s, c in clusters.items() if low <= s <= (high or s)}]
        for count, inside in [(sum(found.values()), sum(s * c for s, c in found.items()))]
        if count
    ]
    caption = "clusters of this size, and the pieces in them"
    chart = card("Clusters of near copies, by size", bar_chart(bars, 1), caption) if bars else ""
    return f'<h2>Copies</h2><p>{said}</p><div class="cards wide">{chart}</div>'


def _quality(statistics: PieceStatistics) -> str:
    pieces = statistics.num_pieces
    cards = []
    if statistics.off_grid.total:
        limits = np.array(_OFF_GRID_LIMITS) + statistics.off_grid.unit / 2
        counts = statistics.off_grid.counts_between(np.concatenate([[0.0], limits]))
        names = ["none"] + [f"up to {100 * limit:g} %" for limit in _OFF_GRID_LIMITS[1:]]
        bars = [Bar(name, int(count)) for name, count in zip(names, counts, strict=True)]
        cards.append(
            card(
                "Onsets off the grid",
                bar_chart(bars, pieces, colour="var(--second)"),
                "pieces by the share of their onsets that lie off the grid; a warning, no reason "
                "to reject",
            )
        )
    given_up = {
        quantised_words(name): count
        for name, count in statistics.quantised.items()
        if name != "notes"
    }
    if any(given_up.values()):
        bars = [Bar(name, count, note=" ") for name, count in _by_count(given_up) if count]
        cards.append(
            card(
                "What the grid cost",
                bar_chart(bars, 1, colour="var(--second)", long_labels=True),
                f"summed over all pieces, whose files have {statistics.quantised['notes']:,} notes",
            )
        )
    if statistics.recovered:
        bars = [Bar(name, count) for name, count in _by_count(statistics.recovered)]
        cards.append(card("Files mended", bar_chart(bars, pieces, colour="var(--second)")))
    return f'<h2>Quality</h2><div class="cards wide">{"".join(cards)}</div>' if cards else ""


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _most(bars: Sequence[Bar], total: int) -> str:
    """The longest bars, and how many are not shown."""
    chart = bar_chart(bars[:_MOST_BARS], total)
    rest = len(bars) - _MOST_BARS
    return chart + (f'<p class="legend">and {rest} more</p>' if rest > 0 else "")
