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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from meloformer.bridge.extraction import WindowSettings, base_facts, check_base, extract
from meloformer.bridge.targets import SummaryTargets
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import (
    Weights,
    find_model_folder,
    load_model,
    model_fingerprint,
    model_metadata,
    newest_run,
)
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import check_fingerprint

_BYTES_PER_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Flags of launch/extract_summaries.py."""

    data: str
    """Shard folder, or its URL."""
    output: Path
    """Folder to be made."""
    checkpoint: Path | None = None
    """The base: run folder, step folder or model folder; the newest run if not given."""
    weights: Weights = "raw"
    """Those of the last step, or the moving average of a run trained with --ema."""
    windows: WindowSettings = field(default_factory=WindowSettings)
    batch_size: int = 8
    """Rows that are computed together; no number depends on it."""
    device: DeviceName = "auto"
    """Where the model runs."""
    allow_closed_base: bool = False
    """Take a base that was trained at --open_summary_rate 0."""
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size {self.batch_size}: allowed 1 or more")


def main(config: ExtractConfig) -> None:
    """Load, extract, report."""
    console = Console()
    folder = find_model_folder(config.checkpoint or newest_run(), config.weights)
    check_fingerprint(model_metadata(folder).get("tokenizer", "none"), str(folder))
    shards = ShardFolder.open(config.data, config.cache)
    model = load_model(folder, choose_device(config.device))
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
