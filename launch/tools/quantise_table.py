"""Say, corpus by corpus, what the grid could not hold: one row for each input.

    python launch/tools/quantise_table.py default
    python launch/tools/quantise_table.py ../shared/corpora/*.tar.gz
    python launch/tools/quantise_table.py my_midi/ --pedal off

An input is what `launch/shard_data.py --midi` takes: a folder, an archive, a list file, `default`.
"""

from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.errors import MidiError
from meloformer.midi.bars import BarCounts
from meloformer.midi.quantise import QuantiseCounts, quantise_counted
from meloformer.midi.read import read_midi
from meloformer.shards.sources import Source, open_source

_COUNTS = [f.name for f in (*fields(QuantiseCounts), *fields(BarCounts)) if f.name != "bars"]


@dataclass(frozen=True, kw_only=True)
class QuantiseTableConfig:
    """Flags of launch/tools/quantise_table.py."""

    inputs: tyro.conf.Positional[tuple[str, ...]] = ("default",)
    """Folders, archives, list files, `default`."""
    pedal: Literal["on", "off"] = "on"
    """Let the sustain pedal lengthen notes."""


def quantise_table(config: QuantiseTableConfig) -> int:
    totals = {}
    for source in [open_source(name) for name in config.inputs]:
        totals[source.name.split(".")[0]] = count(source, pedal=config.pedal == "on")
    table = Table(title="what quantising found and gave up")
    table.add_column("")
    for name in totals:
        table.add_column(name, justify="right", overflow="fold")
    refusals = sorted(
        {key for total in totals.values() for key in total if key.startswith("refused")}
    )
    for key in ["files", *refusals, "bars", *_COUNTS]:
        table.add_row(key.replace("_", " "), *(f"{total[key]:,}" for total in totals.values()))
    Console().print(table)
    return 0


def count(source: Source, *, pedal: bool) -> Counter[str]:
    """Sum up all counts of one input; refused files by reason."""
    total: Counter[str] = Counter()
    for file in track(source.files(), description=source.name, console=Console(stderr=True)):
        total["files"] += 1
        try:
            quantised, counts = quantise_counted(read_midi(file.read()), pedal=pedal)
        except MidiError as error:
            total[f"refused: {error.reason}"] += 1
            continue
        total["bars"] += quantised.num_bars
        for name in _COUNTS:
            total[name] += getattr(counts if hasattr(counts, name) else counts.bars, name)
    return total


if __name__ == "__main__":
    run_recipe(quantise_table, QuantiseTableConfig)
