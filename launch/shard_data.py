"""Turn MIDI files into shards for training.

    python launch/shard_data.py                                     # the default corpus
    python launch/shard_data.py --midi chorales --output data_shards/chorales   # a part of it
    python launch/shard_data.py --midi lakh.tar.gz --output data_shards/lakh --num_workers 16
    python launch/shard_data.py --midi my_midi_folder --output data_shards/mine --pedal off

`--midi` takes `default`, `chorales`, a folder (archives in it are opened), a .zip, a .tar(.gz), or
a text file of paths. The shards do not depend on --num_workers.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.shards.build import OnProgress, build_shards
from meloformer.shards.manifest import REJECTED_NAME, ShardSettings
from meloformer.shards.sources import DEFAULT, open_source
from meloformer.shards.summary import summary_table


def num_cores() -> int:
    """Cores that this process may use; a container may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class ShardDataConfig:
    """Flags of launch/shard_data.py."""

    midi: str = DEFAULT
    """`default` (music21's scores), `chorales` (its four-part ones), a folder, a .zip, a .tar(.gz),
    or a text file of paths."""
    output: Path = Path("data_shards/default")
    """Folder to be made."""
    num_workers: int = field(default_factory=num_cores)
    """Processes; all cores unless given."""
    engine: Literal["local"] = "local"
    """Where the workers run."""
    overwrite: bool = False
    """Replace the shards that --output holds."""
    settings: ShardSettings = field(default_factory=ShardSettings)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"--num_workers {self.num_workers}: allowed 1 or more")


def shard_data(config: ShardDataConfig) -> None:
    console = Console()
    source = open_source(config.midi)
    start = time.perf_counter()
    with progress_bar(console) as on_progress:
        manifest = build_shards(
            source,
            config.output,
            config.settings,
            num_workers=config.num_workers,
            overwrite=config.overwrite,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - start
    rate = manifest.num_in / seconds
    console.print(summary_table(manifest, title=str(config.output)))
    if manifest.num_rejected:
        console.print(f"each rejected file and its reason: {config.output / REJECTED_NAME}")
    console.print(
        f"{seconds:.1f} s, {rate:,.1f} files per second, "
        f"{rate / config.num_workers:,.1f} per second and core"
    )


@contextmanager
def progress_bar(console: Console) -> Iterator[OnProgress]:
    """Files done, of all where their number is known, and files per second."""
    columns = (
        TextColumn("converting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[rate]:,.0f}/s,"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("files", total=None, rate=0.0)
        start = time.perf_counter()

        def on_progress(done: int, total: int | None) -> None:
            rate = done / (time.perf_counter() - start)
            progress.update(task, completed=done, total=total, rate=rate)

        yield on_progress


if __name__ == "__main__":
    run_recipe(shard_data, ShardDataConfig)
