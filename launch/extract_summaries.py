"""Write the layer-3 summaries of a shard set: the targets that bridges are trained on.

    python launch/extract_summaries.py --data data_shards/<name> --output summaries/<name>
    python launch/extract_summaries.py --checkpoint runs/<name> --weights ema --data ...

Pieces are cut into windows of at most --max_bars bars and --max_seq_len tokens; where a piece has
more, windows overlap by --overlap bars. All optional attributes are absent: what a text says of a
piece, a bridge has to say by summaries alone. After a stop of any kind the same command goes on
where it stopped; nothing opens at --output before all is there.
"""

if __name__ == "__main__":
    from meloformer.interrupts import end_at_signals

    end_at_signals()

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from meloformer.bridge.base_and_shards import SummarisingConfig
from meloformer.bridge.extraction import base_facts, check_base, extract
from meloformer.bridge.targets import SummaryTargets
from meloformer.command_line import run_recipe
from meloformer.model.weights import model_fingerprint

_BYTES_PER_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(SummarisingConfig):
    """Flags of launch/extract_summaries.py.

    Args:
        output: folder to be made.
        allow_closed_base: take a base that was trained at --open_summary_rate 0.
    """

    output: Path
    allow_closed_base: bool = False


def main(config: ExtractConfig) -> None:
    """Load, extract, report."""
    console = Console()
    model, folder, shards = config.load()
    check_base(model, allow_closed=config.allow_closed_base)

    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        total = sum(shard.bars for shard in shards.manifest.shards())
        task = progress.add_task("summarising bars", total=total)
        manifest = extract(
            model,
            base_facts(model, folder, model_fingerprint(folder)),
            shards,
            config.output,
            config.windows,
            batch_size=config.batch_size,
            on_progress=lambda bars: progress.advance(task, bars),
        )
    console.print(as_table(manifest, str(config.output)))
    targets = SummaryTargets.open(config.output)
    console.print(
        f"mean {targets.mean.min():.3g} to {targets.mean.max():.3g}, deviation "
        f"{targets.std.min():.3g} to {targets.std.max():.3g} over {targets.width} dimensions; "
        f"float16 takes away at most {manifest['worst_rounding_of_std']:.1e} deviations; "
        f"{time.perf_counter() - started:.1f} s"
    )


def as_table(manifest: dict[str, Any], title: str) -> Table:
    """What was written, split by split."""
    table = Table("split", title=title, title_justify="left")
    for name in ("windows", "bars", "left out", "MB"):
        table.add_column(name, justify="right")
    for split, facts in manifest["splits"].items():
        size = sum(manifest["files"][shard["file"]]["bytes"] for shard in facts["shards"])
        counts = (facts[name] for name in ("windows", "bars", "skipped_bars"))
        table.add_row(split, *(f"{count:,}" for count in counts), f"{size / _BYTES_PER_MB:.1f}")
    return table


if __name__ == "__main__":
    run_recipe(main, ExtractConfig, after_a_stop="the same command goes on where this one stopped")
