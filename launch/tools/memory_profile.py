"""Memory of training by size, length and batch: predicted, measured where there is a GPU.

    python launch/tools/memory_profile.py
    python launch/tools/memory_profile.py --sizes small --lengths 8192 16384 --batches 1 6
    python launch/tools/memory_profile.py --checkpointing layer --stage 2 --ranks 8 --json
    python launch/tools/memory_profile.py --measure off              # formula alone

Predicted is the peak that torch.cuda.max_memory_allocated should show on one rank under bf16, by
formula (modelled); measured are real steps of one rank on the GPU in hand, under --stage, and none
where --ranks asks for several. A card fits a batch whose predicted peak is below --memory_headroom
of its memory.
"""

import json
import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from meloformer.benchmarks.bench_tables import TABLE_WIDTH
from meloformer.benchmarks.memory_table import MemoryRow, MemoryTableConfig, memory_rows
from meloformer.command_line import run_recipe
from meloformer.training.cards import CARDS
from meloformer.training.config import OnOff
from meloformer.training.memory import MAX_ROWS
from meloformer.training.metrics import BYTES_PER_GIB


@dataclass(frozen=True, kw_only=True)
class MemoryProfileConfig(MemoryTableConfig):
    """Flags of launch/tools/memory_profile.py."""

    measure: OnOff = "on"
    """Try every batch of a row on the GPU in hand, where there is one."""
    json: bool = False
    """Print one JSON object instead of a table."""


def memory_profile(config: MemoryProfileConfig) -> None:
    is_measured = config.measure == "on" and torch.cuda.is_available() and config.ranks == 1
    rows = memory_rows(config, is_measured=is_measured)
    if config.json:
        sys.stdout.write(json.dumps({"rows": [row.to_json() for row in rows]}, indent=2) + "\n")
        return
    console = Console(width=TABLE_WIDTH)
    if not is_measured:
        console.print("nothing is measured here: every figure is modelled, by formula")
    console.print(as_table(config, rows))


def as_table(config: MemoryProfileConfig, rows: list[MemoryRow]) -> Table:
    table = Table(
        title=f"GiB on a rank: rule {config.attention}, checkpointing {config.checkpointing}, "
        f"attention in {config.attention_precision}, ZeRO-{config.stage} over {config.ranks}",
        caption=f"columns of GiB: most rows that fit {config.memory_headroom:.0%} of cards of so "
        f"much memory (modelled, {MAX_ROWS}+: not looked further); 0 where not even one does",
        caption_justify="left",
        title_justify="left",
    )
    for name in ("size", "tokens", "rows", "states", "activations", "predicted", "measured"):
        table.add_column(name, justify="right")
    card_of_size = {card.memory_gib: card.name for card in CARDS}
    for memory_gib in sorted(card_of_size):
        table.add_column(f"{memory_gib:g}", justify="right")
    for row in rows:
        gib = [
            f"{size / BYTES_PER_GIB:.2f}" for size in (row.states, row.activations, row.predicted)
        ]
        gib.append(measured_words(row))
        batches = [row.largest_batch[card_of_size[key]] for key in sorted(card_of_size)]
        most = [f"{rows}+" if rows == MAX_ROWS else str(rows) for rows in batches]
        table.add_row(row.model_size, f"{row.tokens:,}", str(row.rows), *gib, *most)
    return table


def measured_words(row: MemoryRow) -> str:
    """The measured peak for people."""
    if row.measured is None:
        return "-"
    return f"{row.measured / BYTES_PER_GIB:.2f}" if row.measured else "does not fit"


if __name__ == "__main__":
    run_recipe(memory_profile, MemoryProfileConfig)
