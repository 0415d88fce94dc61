"""A run in the terminal: how far it is, its curves, who is slow, what it said last."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from meloformer.progress import duration
from meloformer.training.doing import read_doing
from meloformer.training.health import Finding, silent_seconds
from meloformer.training.metrics import gibibytes
from meloformer.training.run_reader import RunReader

_LOSS_ROWS = 9
# What a run does is worth a word where it does it for so long.
_SECONDS_OF_A_MOMENT = 10.0
_SPARK_COLUMNS = 32
_BLOCKS = "▁▂▃▄▅▆▇█"
# Dots of a braille cell, by row and column, as bits above U+2800.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_EMPTY = chr(0x2800)


@dataclass(frozen=True)
class Curve:
    """A row of the table of curves.

    Args:
        column: of metrics.jsonl.
        name: for people.
        write: a value in words.
    """

    column: str
    name: str
    write: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{value:.1%}"


CURVES = (
    Curve("nats_per_note", "nats per note", lambda value: f"{value:.3f}"),
    Curve("grad_norm", "gradient norm", lambda value: f"{value:.3f}"),
    Curve("lr", "learning rate", lambda value: f"{value:.2e}"),
    Curve("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
    Curve("rows_per_second", "rows/s", lambda value: f"{value:,.1f}"),
    Curve("mfu", "MFU", _percent),
    Curve("gpu_utilisation", "GPU busy", _percent),
    Curve("data_wait", "data wait", _percent),
    Curve("padding", "padding", _percent),
    Curve("memory", "device peak", gibibytes),
    Curve("memory_host", "host memory", gibibytes),
    Curve("skipped", "skipped steps", lambda value: f"{value:.0f}"),
)


def picture(run: RunReader, now: float, width: int) -> RenderableType:
    """Everything at a glance.

    Args:
        run: as it stands.
        now: seconds since 1970.
        width: of the terminal, in characters.
    """
    starts = run.run.starts
    ranks = starts[-1]["world_size"] if starts else 1
    title = f"{run.folder}: {run.kind}, {ranks} rank{'s' * (ranks > 1)}"
    parts: list[RenderableType] = [_progress(run, now)]
    if run.num_read:
        parts += [Text(), loss_plot(run.column("loss"), run.column("step"), width - 6)]
        parts += [_validation(run), Text(), _curves(run), Text()]
    if run.num_read and ranks > 1:
        parts += [_ranks(run)]
    if line := run.last_log_line():
        parts += [Text(f"last word: {line}", style="dim", overflow="ellipsis", no_wrap=True)]
    return Panel(Group(*parts), title=Text(title), width=width)


def findings_table(findings: list[Finding]) -> Table:
    """Rows of a check."""
    table = Table("", "", "found", "remedy", title="check", title_justify="left")
    for finding in findings:
        word = Text("OK", style="green") if finding.is_ok else Text("NOT OK", style="bold red")
        table.add_row(finding.name, word, finding.found, finding.remedy)
    return table


def _progress(run: RunReader, now: float) -> RenderableType:
    step, num_steps = run.last_step, run.run.num_steps
    silence = silent_seconds(run, now)
    if run.is_finished:
        state = Text("finished", style="green")
    elif ", stopped by " in run.last_log_line():
        state = Text(run.last_log_line(), style="yellow")
    elif silence is not None:
        state = Text(f"silent for {duration(silence)}: stopped, or stuck", style="bold red")
    elif (doing := read_doing(run.folder, now)) and doing.seconds >= _SECONDS_OF_A_MOMENT:
        state = Text(f"{doing.moment}, for {duration(doing.seconds)}", style="cyan")
    elif not run.num_read:
        state = Text("no step yet", style="yellow")
    else:
        eta = run.column("eta_seconds")[-1]
        ago = max(now - run.written_at(), 0)
        state = Text(f"running, eta {duration(eta)}, wrote {duration(ago)} ago", style="cyan")
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(num_steps, 1), completed=step, width=32)
    grid.add_row(bar, f"step {step:,} of {num_steps:,} ({step / max(num_steps, 1):.1%})", state)
    return grid


def loss_plot(loss: np.ndarray, step: np.ndarray, width: int) -> Text:
    """The loss by step, each dot the median of its share of the steps.

    Args:
        loss: (N,) not a number where a step has none.
        step: (N,) of each.
        width: in characters, labels included.
    """
    known = np.isfinite(loss)
    loss, step = loss[known], step[known]
    if not len(loss):
        return Text("loss: no finite value yet")
    label_width = 9
    columns = max(width - label_width, 8)
    values = bin_medians(loss, 2 * columns)
    # Few steps are stretched over the whole width.
    places = np.linspace(0, len(values) - 1, 2 * columns)
    values = np.interp(places, np.arange(len(values)), values)
    low, high = float(values.min()), float(values.max())
    lines = braille(values, columns, _LOSS_ROWS, low, high)
    labels = {0: f"{high:.3f}", _LOSS_ROWS - 1: f"{low:.3f}", _LOSS_ROWS // 2: "loss"}
    text = Text()
    for row, line in enumerate(lines):
        text.append(f"{labels.get(row, ''):>{label_width - 2}} ┤", style="dim")
        text.append(f"{line}\n", style="cyan")
    first, last = f"step {step[0]:,.0f}", f"{step[-1]:,.0f}, loss {loss[-1]:.4f}"
    text.append(" " * label_width + first + last.rjust(max(columns - len(first), len(last) + 1)))
    return text


def bin_medians(values: np.ndarray, num_bins: int) -> np.ndarray:
    """At most so many medians of neighbours, in order.

    >>> bin_medians(np.array([1.0, 3.0, 9.0, 5.0]), 2).tolist()
    [2.0, 7.0]
    """
    return np.array(
        [np.median(part) for part in np.array_split(values, min(len(values), num_bins))]
    )


def braille(values: np.ndarray, columns: int, rows: int, low: float, high: float) -> list[str]:
    """A line through the values, two dots wide and four dots high to a character.

    Args:
        values: (N,) finite, N at most twice the columns.
        columns: characters to the right.
        rows: characters up.
        low: value at the bottom.
        high: value at the top.

    >>> braille(np.array([0.0, 1.0]), 1, 1, 0.0, 1.0)
    ['⡸']
    """
    dots = np.zeros((4 * rows, 2 * columns), bool)
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    heights = np.round((1 - share) * (4 * rows - 1)).astype(int)
    for column, (height, before) in enumerate(zip(heights, [heights[0], *heights], strict=False)):
        # From the middle between two values on: a line without gaps.
        near = before + np.sign(height - before) if column else height
        top, bottom = sorted((height, near))
        dots[top : bottom + 1, column] = True
    cells = dots.reshape(rows, 4, columns, 2).transpose(0, 2, 1, 3)
    codes = ord(_EMPTY) + (cells * _DOTS).sum(axis=(2, 3))
    return ["".join(map(chr, line)).replace(_EMPTY, " ") for line in codes.tolist()]


def sparkline(values: np.ndarray, columns: int = _SPARK_COLUMNS) -> str:
    """A curve one character high; a flat one lies at the bottom.

    >>> sparkline(np.array([0.0, 7.0, 3.5]))
    '▁█▅'
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return ""
    medians = bin_medians(known, columns)
    span = medians.max() - medians.min()
    levels = (medians - medians.min()) / (span or 1.0) * (len(_BLOCKS) - 1)
    return "".join(_BLOCKS[level] for level in np.round(levels).astype(int))


def _curves(run: RunReader) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(*(Text(word, style="dim") for word in ("", "now", "curve", "lowest", "highest")))
    for curve in CURVES:
        values = run.column(curve.column)
        known = values[np.isfinite(values)]
        if len(known):
            ends = (curve.write(known.min()), curve.write(known.max()))
            table.add_row(curve.name, curve.write(known[-1]), sparkline(values), *ends)
    return table


def _validation(run: RunReader) -> Text:
    if run.is_bridge:
        return _validation_of_bridge(run)
    told = [line for line in run.validations if "all" in line]
    if not told:
        return Text("no validation yet", style="dim")
    scores = [line["all"]["per_token"] for line in told]
    best = int(np.argmin(scores))
    curve = sparkline(np.array(scores)) if len(scores) > 1 else ""
    return Text(
        f"validation after step {told[-1]['step']:,}: {scores[-1]:.4f} nats per token and "
        f"{told[-1]['all']['per_note']:.3f} per note; best {scores[best]:.4f} after step "
        f"{told[best]['step']:,}  {curve}"
    )


def _validation_of_bridge(run: RunReader) -> Text:
    if not run.validations:
        return Text("no validation yet", style="dim")
    losses = [line["loss"] for line in run.validations]
    best = int(np.argmin(losses))
    last = run.validations[-1]
    others = "".join(
        f", {name} {v:.4f}" for name, v in last.items() if name not in ("step", "loss")
    )
    curve = sparkline(np.array(losses)) if len(losses) > 1 else ""
    return Text(
        f"validation after step {last['step']:,}: loss {losses[-1]:.4f}{others}; best loss "
        f"{losses[best]:.4f} after step {run.validations[best]['step']:,}  {curve}"
    )


def _ranks(run: RunReader) -> Text:
    slowest = run.of_last_start("slowest_rank")
    known = np.isfinite(slowest)
    if not known.any():
        return Text("slowest rank: not known before the second step", style="dim")
    most, median = (run.of_last_start(f"rank_seconds_{name}") for name in ("max", "median"))
    times = np.bincount(slowest[known].astype(int))
    rank = int(times.argmax())
    return Text(
        f"slowest rank: {int(slowest[known][-1])} with {most[known][-1]:.3g} s of its own against "
        f"a median of {median[known][-1]:.3g} s; most often rank {rank} "
        f"({times.max() / known.sum():.0%} of the steps)"
    )
