r"""Write captions for every window of a shard folder, in English and in Chinese.

    python launch/caption.py --data data_shards/default --output captions.jsonl
    python launch/caption.py --data data_shards/lakh --output captions.jsonl --languages en \
        --user_captions midicaps.jsonl --num_workers 16
    python launch/caption.py --data data_shards/mma --output captions.jsonl --labels folder name
    python launch/caption.py --data data_shards/mma --output captions.jsonl --labels labels.jsonl

Each line holds one window: several captions from vague to exact, the templates they are made of,
what they mention, and what was measured. Facts of the whole stand in captions.json beside it. Train
sees some sentence templates, valid and test the others. The bytes do not depend on --num_workers.

A bridge joins captions with the summaries of a base model by their windows: give both recipes the
same --max_bars, --overlap and --max_seq_len, which is the base's.
"""

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from meloformer.captions.build import build_captions
from meloformer.captions.caption_set import read_captions
from meloformer.captions.settings import CaptionSettings
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.cores import cores_at_hand


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Flags of launch/caption.py."""

    data: str = "data_shards/default"
    """Shard folder, or its URL."""
    output: Path = Path("captions.jsonl")
    """File to be made; its facts go beside it."""
    num_workers: int = field(default_factory=cores_at_hand)
    """Processes; all cores unless given."""
    overwrite: bool = False
    """Replace another caption set."""
    examples: int = 3
    """Windows whose captions are printed at the end."""
    settings: CaptionSettings = field(default_factory=CaptionSettings)

    def __post_init__(self) -> None:
        for name, least in (("num_workers", 1), ("examples", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed {least} or more")


def caption(config: CaptionConfig) -> None:
    console = Console()
    start = time.perf_counter()
    with Progress(console=console) as progress:
        task = progress.add_task("pieces", total=None)
        facts = build_captions(
            config.data,
            config.output,
            config.settings,
            num_workers=config.num_workers,
            overwrite=config.overwrite,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - start
    console.print(counts_table(facts, str(config.output)))
    for window in islice(read_captions(config.output), config.examples):
        console.print(f"{window.location}, bars {window.first_bar}..{window.last_bar - 1}:")
        for texts in window.captions.values():
            console.print("\n".join(f"  {text}" for text in texts), markup=False, highlight=False)
    pieces = facts["counts"]["pieces"]
    console.print(f"{seconds:.1f} s, {pieces:,} pieces, {pieces / seconds:,.1f} per second")


def counts_table(facts: dict[str, Any], title: str) -> Table:
    """What was written, and what was left out."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    table.add_column("number", justify="right")
    for name, count in facts["counts"].items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    for language, names in facts["held_out_templates"].items():
        table.add_row(f"templates held out {language}", f"{len(names):,}")
    return table


if __name__ == "__main__":
    run_recipe(caption, CaptionConfig, after_a_stop="nothing was written")
