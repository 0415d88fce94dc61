"""The report on statistics as one HTML page: tables, drawings, piano rolls, something to hear."""

from collections.abc import Sequence
from html import escape

import numpy as np

from meloformer.evaluation.control_intervals import LEVEL, Interval
from meloformer.evaluation.piece_copies import LIKENESSES
from meloformer.evaluation.statistics_charts import (
    COLOURS,
    STYLE,
    Series,
    columns,
    curves,
    distributions,
    legend,
    piano_roll,
    player,
    player_bytes,
)
from meloformer.evaluation.statistics_judge import (
    MEANINGS,
    SHARES,
    JudgedSet,
    StatisticsFindings,
    interval_of,
    is_apart,
    names_of,
)
from meloformer.evaluation.statistics_settings import StatisticsConfig
from meloformer.evaluation.statistics_table import STATISTICS
from meloformer.midi.harmony import NO_CHORD, NUM_CHORDS
from meloformer.plurals import counted
from meloformer.shards.report_charts import Bar, bar_chart, short, tokens_text
from meloformer.shards.report_parts import card, page, table
from meloformer.tokens.vocabulary import CHORD_QUALITIES, NUM_KEYS, PITCH_CLASSES

# What all players together may take: the page stays small enough to be sent by mail.
_MOST_SOUND_BYTES = 7_000_000
_MOST_TUNES = 8
# Up to so many bars apart every fourth is named, beyond it every sixteenth.
_FEW_DISTANCES = 40


def statistics_page(
    findings: StatisticsFindings, config: StatisticsConfig, title: str, seed: int
) -> str:
    """The whole page.

    Args:
        findings: of at least one set.
        config: which pieces are drawn and heard.
        title: of the page.
        seed: draws these pieces.
    """
    parts = [
        _head(findings, title),
        _numbers(findings),
        _distributions(findings),
        _repetition(findings),
        _harmony(findings),
        _likelihood(findings),
        _copies(findings),
        _unread(findings),
        _pieces(findings, config, seed),
    ]
    footer = "Every figure: statistics.json; every piece: pieces.jsonl"
    return page(title, [part for part in parts if part], footer, STYLE)


def number(value: float, name: str) -> str:
    """A value of a statistic for people.

    >>> number(0.5, "empty_bars"), number(2.71828, "polyphony"), number(float("nan"), "polyphony")
    ('50.0 %', '2.72', '-')
    """
    if np.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.3g}"


def span(found: Interval, name: str) -> str:
    """The interval alone.

    >>> span(Interval(mean=0.5, low=0.41, high=0.6, n=9), "empty_bars")
    '41.0 to 60.0'
    """
    low, high = (100 * end if name in SHARES else end for end in (found.low, found.high))
    return f"{low:.1f} to {high:.1f}" if name in SHARES else f"{low:.3g} to {high:.3g}"


def _head(findings: StatisticsFindings, title: str) -> str:
    tiles = "".join(
        f"<div><dd>{len(one.pieces.pieces):,}</dd><dt>pieces in {escape(one.name)}</dt></div>"
        for one in findings.sets
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in findings.notes)
    return (
        f'<h1>{escape(title)}</h1><p class="lead">What these pieces are like, by their notes on '
        f'one grid.</p><dl class="tiles">{tiles}</dl>{notes}'
    )


def _numbers(findings: StatisticsFindings) -> str:
    rows = []
    for name in names_of(findings):
        cells = [_cell(findings, one, name) for one in findings.sets]
        meaning = f"{escape(name.replace('_', ' '))}<br><small>{escape(MEANINGS[name])}</small>"
        rows.append(f"<tr><td>{meaning}</td>{''.join(cells)}</tr>")
    head = "<th></th>" + "".join(f"<th>{escape(one.name)}</th>" for one in findings.sets)
    beside = ""
    if findings.reference is not None:
        beside = (
            f" Coloured where it does not meet that of '{escape(findings.reference)}'; similarity "
            "error, where it lies above what a second draw of as many pieces has "
            f"({number(findings.chance.mean, 'bar_similarity_error') if findings.chance else '-'})."
        )
    return (
        f"<h2>Numbers</h2><p>Means over pieces, and below each its {LEVEL:.0%} interval "
        f"(bootstrap over pieces).{beside}</p>"
        f'<div class="scroll"><table class="wrap"><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _cell(findings: StatisticsFindings, one: JudgedSet, name: str) -> str:
    found = interval_of(one, name)
    if found is None or not found.n:
        return "<td>-</td>"
    mark = ' class="apart"' if is_apart(findings, one, name) else ""
    return f"<td{mark}>{number(found.mean, name)}<br><small>{span(found, name)}</small></td>"


def _series(findings: StatisticsFindings, values: Sequence[np.ndarray]) -> list[Series]:
    return [
        Series(one.name, of, COLOURS[place % len(COLOURS)])
        for place, (one, of) in enumerate(zip(findings.sets, values, strict=True))
    ]


def _distributions(findings: StatisticsFindings) -> str:
    cards = []
    for statistic in STATISTICS:
        if statistic.name == "major":  # yes or no: its mean says all
            continue
        series = _series(findings, [one.pieces.column(statistic.name) for one in findings.sets])
        drawing = distributions(series, statistic.name, _percent if statistic.is_share else short)
        cards.append(card(statistic.name.replace("_", " "), drawing, statistic.meaning))
    shown = legend(_series(findings, [np.zeros(0)] * len(findings.sets)))
    return (
        '<h2>Distributions</h2><p class="muted">Pieces by value: equal means may hide unequal '
        f"pieces. Each outline holds all pieces of its set.</p>{shown}"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _percent(share: float) -> str:
    """A share on an axis.

    >>> _percent(0.25), _percent(0.005)
    ('25%', '0.5%')
    """
    return f"{100 * share:.3g}%"


def _repetition(findings: StatisticsFindings) -> str:
    curves_ST = np.stack([one.pairs.curve() for one in findings.sets])
    # As far as any piece reaches.
    reached = int(np.flatnonzero(~np.isnan(curves_ST).all(axis=0)).max(initial=0)) + 1
    series = _series(findings, list(curves_ST[:, :reached]))
    distances = list(range(1, reached + 1))
    ticks = distances[3::4] if len(distances) <= _FEW_DISTANCES else distances[15::16]
    drawing = curves(distances, series, "Similarity of bars by distance", ticks=ticks)
    about = (
        "Of the notes of two bars so many bars apart, those that both hold. Songs come back after "
        "2, 4, 8, 16 bars: a set without the peaks of the reference repeats itself otherwise."
    )
    return (
        f"<h2>How bars come back</h2><p>{about}</p>"
        f'<div class="cards wide">{card("", drawing + legend(series), "along: bars apart")}</div>'
    )


def _harmony(findings: StatisticsFindings) -> str:
    names = [*CHORD_QUALITIES, "none"]
    chords = _series(findings, [chord_shares(one) for one in findings.sets])
    keys = _series(findings, [key_shares(one) for one in findings.sets])
    major, minor = (
        [Series(one.name, one.values[mode], one.colour) for one in keys]
        for mode in (slice(12), slice(12, None))
    )
    cards = [
        card("Chords of bars", columns(names, chords, "Chords by quality"), "share of all bars"),
        card("Major keys", columns(PITCH_CLASSES, major, "Major keys"), "share of pieces"),
        card("Minor keys", columns(PITCH_CLASSES, minor, "Minor keys"), "share of pieces"),
    ]
    return f'<h2>Chords and keys</h2>{legend(chords)}<div class="cards">{"".join(cards)}</div>'


def chord_shares(one: JudgedSet) -> np.ndarray:
    """(8,) share of all bars by the quality of their chord; the last has none."""
    chord_B = np.concatenate([piece.chord_B for piece in one.pieces.pieces])
    counts = np.bincount(chord_B, minlength=NUM_CHORDS + 1)
    by_quality = counts[:NO_CHORD].reshape(12, -1).sum(axis=0)
    return np.append(by_quality, counts[NO_CHORD]) / len(chord_B)


def key_shares(one: JudgedSet) -> np.ndarray:
    """(24,) share of the pieces by key; those of drums alone have none."""
    keys = [piece.key for piece in one.pieces.pieces if piece.key is not None]
    return np.bincount(keys, minlength=NUM_KEYS) / len(one.pieces.pieces)


def _likelihood(findings: StatisticsFindings) -> str:
    scored = findings.likelihood
    if not scored:
        return ""
    kinds = list(dict.fromkeys(kind for one in scored for kind in one.nats.per_kind))
    means = [one.per_note for one in scored]
    rows = [
        ["per note", *(f"{one.nats.per_note:.3f}" for one in scored)],
        ["mean of pieces", *(f"{of.mean:.3f} [{of.low:.3f}, {of.high:.3f}]" for of in means)],
        ["per token", *(f"{one.nats.per_token:.3f}" for one in scored)],
    ]
    for kind in kinds:
        found = [one.nats.per_kind.get(kind) for one in scored]
        rows.append([kind.lower(), *("-" if of is None else f"{of:.3f}" for of in found)])
    head = ["tokens read at once", *(tokens_text(one.length) for one in scored)]
    drawing = ""
    if len(scored) > 1:
        values = np.array([one.nats.per_note for one in scored])
        drawing = card(
            "Nats per note",
            curves(
                [np.log2(one.length) for one in scored],
                [Series("nats per note", values, COLOURS[0])],
                "Nats per note by context",
                low=float(values.min()) * 0.9,
                y_text=lambda value: f"{value:.2f}",
                x_text=lambda value: tokens_text(round(2**value)),
            ),
            "along: tokens that are read at once",
        )
    return (
        f"<h2>Likelihood</h2><p>Nats of {scored[0].per_note.n:,} held-out pieces, every note "
        "scored once at each context length; the kinds: nats per token of each.</p>"
        f"{table(head, rows)}{drawing}"
    )


def _copies(findings: StatisticsFindings) -> str:
    found = [(one, one.copies) for one in findings.sets if one.copies is not None]
    if not found:
        return ""
    rows = []
    for one, copies in found:
        shares = [one.intervals[f"copied_bars_{likeness}"] for likeness in LIKENESSES]
        runs = [str(copies.longest_run[likeness]) for likeness in LIKENESSES]
        rows.append(
            [
                one.name,
                *(number(share.mean, "copied_bars_verbatim") for share in shares),
                *runs,
                f"{int(copies.tunes.sum()):,}",
            ]
        )
    head = ["", "bars, verbatim", "in any key", "longest run", "in any key", "tunes"]
    closest = sorted(
        (
            (float(copies.overlap[place]), one.name, piece.name, copies.nearest[place])
            for one, copies in found
            for place, piece in enumerate(one.pieces.pieces)
            if copies.nearest[place]
        ),
        reverse=True,
    )[:_MOST_TUNES]
    nearest = (
        table(
            ["piece", "of", "training piece", "of a passage"],
            [[name, of, key, f"{overlap:.0%}"] for overlap, of, name, key in closest],
        )
        if closest
        else ""
    )
    return (
        "<h2>Copies</h2><p>What stands in the training split. Held-out music says how often a bar "
        "recurs by style and by chance.</p>"
        + card("", table(head, rows))
        + card("", nearest, "the pieces that coincide most with a training piece")
    )


def _unread(findings: StatisticsFindings) -> str:
    cards = []
    for one in findings.sets:
        if one.pieces.unread:
            bars = [Bar(reason, count) for reason, count in one.pieces.reasons.items()]
            drawing = bar_chart(bars, one.pieces.num_files, colour="var(--third)")
            first = one.pieces.unread[0]
            caption = f"such as {first.name}: {first.detail or first.reason}"
            cards.append(
                card(f"{one.name}: {counted(len(one.pieces.unread), 'file')}", drawing, caption)
            )
    if not cards:
        return ""
    return f'<h2>Files that could not be read</h2><div class="cards wide">{"".join(cards)}</div>'


def _pieces(findings: StatisticsFindings, config: StatisticsConfig, seed: int) -> str:
    num_players = sum(
        min(config.players, config.rolls, len(one.pieces.pieces)) for one in findings.sets
    )
    seconds = config.player_seconds
    if num_players:
        fits = _MOST_SOUND_BYTES / num_players / player_bytes(1.0)
        seconds = min(seconds, fits)
    parts = []
    for one in findings.sets:
        random = np.random.default_rng(seed)
        pieces = one.pieces.pieces
        chosen = np.sort(random.permutation(len(pieces))[: config.rolls]).tolist()
        for place, number_of_piece in enumerate(chosen):
            piece = pieces[number_of_piece]
            drawing = piano_roll(piece.music, seconds)
            if place < config.players:
                drawing += player(piece.music, seconds)
            parts.append(card(f"{one.name}: {piece.name}", drawing))
    if not parts:
        return ""
    about = f"Drawn at random; the first {seconds:.0f} seconds of each, by a plain synthesiser."
    return f'<h2>Pieces</h2><p class="muted">{about}</p><section>{"".join(parts)}</section>'
