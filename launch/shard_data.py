"""Turn MIDI files into shards for training.

    python launch/shard_data.py                                     # the default corpus
    python launch/shard_data.py --midi chorales --output data_shards/chorales   # a part of it
    python launch/shard_data.py --midi lakh.tar.gz --output data_shards/lakh --num_workers 16
    python launch/shard_data.py --midi lakh.tar.gz --report reports/lakh   # look before building
    python launch/shard_data.py --midi more_midi --output data_shards/lakh --append

`--midi` takes `default`, `chorales`, a folder (archives in it are opened), a .zip, a .tar(.gz), a
Hugging Face dataset on disk, or a text file of paths. The shards depend neither on --num_workers
nor on --engine. After a stop of any kind the same command goes on where it stopped.
"""

if __name__ == "__main__":
    from meloformer.interrupts import end_at_signals

    end_at_signals()

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.shards.build import (
    CONVERTING,
    BuildOptions,
    NothingUsableError,
    OnProgress,
    Rejection,
    build_shards,
)
from meloformer.shards.guard import FileLimits
from meloformer.shards.manifest import REJECTED_NAME, Manifest, ShardSettings
from meloformer.shards.pool import Run, local_engine
from meloformer.shards.sources import CHORALES, DEFAULT, open_source
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
    a Hugging Face dataset on disk, or a text file of paths, one a line, relative to that file."""
    output: Path = Path("data_shards/default")
    """Folder to be made."""
    num_workers: int = field(default_factory=num_cores)
    """Processes of this machine; all cores unless given. Ray uses all cores of its cluster."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or on the Ray cluster that RAY_ADDRESS names, whose
    nodes must all see --midi and --output."""
    append: bool = False
    """Add to the shards that --output holds; no piece of them moves."""
    overwrite: bool = False
    """Replace the shards that --output holds, or discard an unfinished build of another kind; with
    --append only the latter."""
    report: Path | None = None
    """Folder for a page (report.html) and a table (pieces.parquet) on what would be built; nothing
    is built then, and --output is not looked at."""
    limits: FileLimits = field(default_factory=FileLimits)
    settings: ShardSettings = field(default_factory=ShardSettings)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"--num_workers {self.num_workers}: allowed 1 or more")
        if self.append and self.report is not None:
            raise ConfigError("--report looks at --midi alone: leave out --append")


def shard_data(config: ShardDataConfig) -> None:
    console = Console()
    source = open_source(config.midi)
    check_apart(config)
    run = engine_of(config, console)
    num_done: Counter[str] = Counter()
    start = time.perf_counter()
    try:
        with progress_bar(console, num_done) as on_progress:
            manifest = build_shards(
                source,
                config.output,
                config.settings,
                run=run,
                options=BuildOptions(
                    overwrite=config.overwrite,
                    append=config.append,
                    limits=config.limits,
                    report=config.report,
                    on_progress=on_progress,
                ),
            )
    except NothingUsableError as error:
        console.print(reasons_table(error.rejections))
        raise
    if manifest is None:
        console.print(
            f"report: {config.report}/report.html and pieces.parquet; nothing was built",
            markup=False,
            soft_wrap=True,
        )
    else:
        print_result(console, config, manifest)
    console.print(pace(config, num_done[CONVERTING], time.perf_counter() - start))


def check_apart(config: ShardDataConfig) -> None:
    """Refuse to write into the input: the next try would find other files in it."""
    flag, folder = ("--report", config.report) if config.report else ("--output", config.output)
    if config.midi in (DEFAULT, CHORALES) or not Path(config.midi).is_dir():
        return
    if Path(config.midi).resolve() in folder.resolve().parents:
        raise ConfigError(
            f"{flag} {folder} lies in --midi {config.midi}, and what is written there would be "
            f"read as input the next time; give a {flag} outside of it"
        )


def engine_of(config: ShardDataConfig, console: Console) -> Run:
    if config.engine == "ray":
        from meloformer.shards.ray_engine import ray_engine

        return ray_engine(partial(console.print, soft_wrap=True))
    return local_engine(config.num_workers)


def reasons_table(rejections: Sequence[Rejection]) -> Table:
    """Why files were rejected, how many, and the first of each kind."""
    table = Table(title="rejected", title_justify="left")
    for column in ("reason", "files", "the first of them", "what was found"):
        table.add_column(column, justify="right" if column == "files" else "left", overflow="fold")
    for found in rejections:
        table.add_row(found.reason, f"{found.count:,}", escape(found.path), escape(found.detail))
    return table


def print_result(console: Console, config: ShardDataConfig, manifest: Manifest) -> None:
    """What the folder holds now."""
    console.print(summary_table(manifest, title=str(config.output)))
    if manifest.num_rejected:
        console.print(
            f"each rejected file and its reason: {config.output / REJECTED_NAME}",
            markup=False,
            soft_wrap=True,
        )
    for line in manifest.inputs[-1].columns:
        console.print(f"columns of {line}", markup=False)


def pace(config: ShardDataConfig, num_files: int, seconds: float) -> str:
    """How fast this try was: what an earlier one has converted does not count."""
    if not num_files:
        return f"{seconds:.1f} s; all files had been converted before"
    rate = num_files / seconds
    said = f"{seconds:.1f} s, {num_files:,} files converted, {rate:,.1f} files per second"
    if config.engine == "ray":  # its machines come and go
        return said
    return f"{said}, {rate / min(config.num_workers, num_cores()):,.1f} per second and core"


@contextmanager
def progress_bar(console: Console, num_done: Counter[str]) -> Iterator[OnProgress]:
    """What is being done, how much of it, of all where that is known, and how fast.

    Args:
        console: where it is shown.
        num_done: takes how much of each has been done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}
        starts = {}

        def on_progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None, rate="")
                starts[what] = time.perf_counter()
            seconds = time.perf_counter() - starts[what]
            num_done[what] = done
            # Of one thing, or of what came at once, a rate says nothing.
            rate = f"{done / seconds:,.0f}/s" if seconds > 1 and (total or 2) > 1 else ""
            progress.update(tasks[what], completed=done, total=total, rate=rate)

        yield on_progress


if __name__ == "__main__":
    run_recipe(
        shard_data,
        ShardDataConfig,
        after_a_stop="the same command goes on where this one stopped",
    )
