"""What a training run takes on each known GPU: measured where a report says so, else modelled."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.table import Table

from meloformer.benchmarks.workload import Workload
from meloformer.model.config import Checkpointing
from meloformer.model.memory import BatchSize
from meloformer.training.cards import CARDS, Card, card_of, find_card
from meloformer.training.config import TrainConfig
from meloformer.training.ds_config import DEFAULT_DS_CONFIG, load_ds_config
from meloformer.training.memory import Partitioning, largest_batch
from meloformer.training.metrics import BYTES_PER_GIB

REPORTS = "gpu-*.json"
# The card that earlier figures are for.
_YARDSTICK = "H800"
_RATINGS = (("A", 0.75), ("B", 0.3))
_LAST_RATING, _NO_RATING = "C", "-"
RATING_RULE = (
    f"rating = bf16 peak beside that of an {_YARDSTICK}: "
    + ", ".join(f"{letter} from {share:.0%}" for letter, share in _RATINGS)
    + f", {_LAST_RATING} below; {_NO_RATING} where not one row fits"
)


@dataclass(frozen=True, kw_only=True)
class CardRow:
    """A line of the table.

    Args:
        card: which GPU.
        figures: where speed, hours and cost come from.
        source: file of the report, or what the model assumes.
        tokens_per_second: of one GPU.
        hours: of the whole workload on one GPU.
        cost: of those hours; None without a price.
        batch: most rows of a micro-batch that fit, by formula.
        checkpointing: without which not one would.
        rating: see RATING_RULE.
    """

    card: Card
    figures: Literal["measured", "modelled"]
    source: str
    tokens_per_second: float
    hours: float
    cost: float | None
    batch: int
    checkpointing: Checkpointing
    rating: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        card = self.card
        return {
            "card": card.name,
            "architecture": card.architecture,
            "sm": f"sm_{card.sm[0]}{card.sm[1]}",
            "memory_gb": card.sheet_gb,
            "memory_gib": card.memory_gib,
            "first_torch": card.first_torch,
            "bf16_tflops": card.bf16_tflops,
            "figures": self.figures,
            "source": self.source,
            "tokens_per_second": self.tokens_per_second,
            "batch": self.batch,
            "checkpointing": self.checkpointing,
            "hours": self.hours,
            "cost": self.cost,
            "rating": self.rating,
        }


def card_rows(
    workload: Workload,
    *,
    mfu: float,
    price_per_hour: float | None = None,
    reports: Path | None = None,
    cards: Sequence[Card] = CARDS,
) -> list[CardRow]:
    """The lines of the table, in the order of the cards.

    Args:
        workload: what is trained.
        mfu: share of the sheet's peak that the modelled rows reach.
        price_per_hour: of one GPU.
        reports: folder with the reports of `gpu_report.py`.
        cards: which.
    """
    flops_per_token = workload.flops_per_token()
    measured = measured_rates(reports, workload) if reports else {}
    rows = []
    for card in cards:
        rate, source = measured.get(card.name, (None, f"MFU {mfu:.0%}"))
        speed = rate or card.peak_flops * mfu / flops_per_token
        hours = workload.hours(speed)
        batch, checkpointing = rows_that_fit(card, workload)
        rows.append(
            CardRow(
                card=card,
                figures="measured" if rate else "modelled",
                source=source,
                tokens_per_second=speed,
                hours=hours,
                cost=None if price_per_hour is None else hours * price_per_hour,
                batch=batch,
                checkpointing=checkpointing,
                rating=rating(card.peak_flops / find_card(_YARDSTICK).peak_flops, batch),
            )
        )
    return rows


def rating(speed: float, batch: int) -> str:
    """A letter for a card.

    Args:
        speed: peak beside the yardstick's.
        batch: rows that fit.

    >>> rating(1.0, 6), rating(0.5, 1), rating(0.1, 2), rating(1.0, 0)
    ('A', 'B', 'C', '-')
    """
    if batch == 0:
        return _NO_RATING
    return next((letter for letter, least in _RATINGS if speed >= least), _LAST_RATING)


def measured_rates(reports: Path, workload: Workload) -> dict[str, tuple[float, str]]:
    """Tokens per second that reports give for the same model, rule and length, by card.

    Args:
        reports: a folder; what is no report, or of an unknown device, is passed over.
        workload: what is trained.

    Returns:
        Speed and the report's file; of several reports on a card the best.
    """
    found: dict[str, tuple[float, str]] = {}
    for path in sorted(reports.glob(REPORTS)):
        try:
            report = json.loads(path.read_text())
            card = card_of(report["device"])
            entries = [entry for entry in report["train"] if _is_of(entry, workload)]
            rates = [float(entry["tokens_per_second"]) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for rate in rates:
            if card and rate > found.get(card.name, (0.0, ""))[0]:
                found[card.name] = rate, path.name
    return found


def _is_of(entry: dict[str, Any], workload: Workload) -> bool:
    wanted = {
        "model_size": workload.model_size,
        "rule": workload.attention,
        "max_seq_len": workload.max_seq_len,
    }
    return all(entry.get(name) == value for name, value in wanted.items()) and bool(
        entry.get("tokens_per_second")
    )


def rows_that_fit(card: Card, workload: Workload) -> tuple[int, Checkpointing]:
    """Most rows of a micro-batch on one GPU by formula, under the default partitioning.

    Returns:
        Rows, and the least checkpointing with which any fit; 0 where none do with all of it.
    """
    partitioning = Partitioning.of(
        {**load_ds_config(DEFAULT_DS_CONFIG), "bf16": {"enabled": True}}, world_size=1
    )
    room = TrainConfig.memory_headroom * card.memory_gib * BYTES_PER_GIB
    for checkpointing in get_args(Checkpointing):
        size = BatchSize.of(1, workload.max_seq_len, checkpointing=checkpointing)
        rows = largest_batch(workload.model, size, partitioning, room)
        if rows:
            break
    return rows, checkpointing


def formula(workload: Workload, mfu: float) -> str:
    """How the figures come about, with the numbers put in."""
    operations = workload.flops_per_token()
    return (
        f"hours = {workload.pieces:,} pieces x {workload.epochs} epochs x "
        f"{workload.tokens_per_piece:,} tokens a piece / (tokens/s) / 3,600 on one GPU; measured "
        f"rows: tokens/s of reports/{REPORTS}; modelled rows: tokens/s = peak of the data sheet x "
        f"MFU {mfu:g} / {operations / 1e9:.3f}e9 operations per token (forward and backward, "
        "unmasked attention and summaries included; the MFU is an assumption); cost = hours x "
        f"price; rows that fit: by formula, in {TrainConfig.memory_headroom:.0%} of what torch "
        f"finds, bf16, one GPU under {DEFAULT_DS_CONFIG.name}; with --checkpointing ffn or layer "
        "where it is said, and then hours leave out what is computed again"
    )


def as_table(rows: Iterable[CardRow], workload: Workload, currency: str) -> Table:
    """The lines for people."""
    table = Table(
        title=f"{workload.pieces:,} pieces x {workload.epochs} epochs, {workload.model_size}, rule "
        f"{workload.attention}, {workload.max_seq_len:,} tokens a row, one GPU",
        title_justify="left",
    )
    for name in ("card", "architecture"):
        table.add_column(name, no_wrap=True)
    for name in (
        *("memory, GB", "torch finds, GiB", "first torch", "bf16, TFLOP/s", "rows that fit"),
        *("tokens/s", "hours", f"cost, {currency}"),
    ):
        table.add_column(name, justify="right")
    table.add_column("rating")
    table.add_column("figures", no_wrap=True)
    for row in rows:
        card = row.card
        table.add_row(
            card.name,
            f"{card.architecture}, sm_{card.sm[0]}{card.sm[1]}",
            f"{card.sheet_gb}",
            f"{card.memory_gib:.1f}",
            card.first_torch,
            f"{card.bf16_tflops:,.0f}",
            f"{row.batch}" + ("" if row.checkpointing == "none" else f", {row.checkpointing}"),
            f"{row.tokens_per_second:,.0f}",
            f"{row.hours:.2f}",
            "-" if row.cost is None else f"{row.cost:,.2f}",
            row.rating,
            row.figures,
        )
    return table
