"""How fast MIDI becomes shards, against MidiTok over the same files, and what memory it takes.

    python launch/bench/data.py --midi pop909.tar.gz --num_workers 1,2 --against miditok
    python launch/bench/data.py --simulate 1000000

Every rate is of one run, alone on the machine. `start-up` is the time of the same command over one
file; what is left of the whole gives files per second and core. `--simulate` sorts, places and
writes that many made-up pieces, and 10,000 beside them, each in a process of its own.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from meloformer.benchmarks.peak_memory import peak_bytes
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError, MidiError
from meloformer.shards.build import build_shards
from meloformer.shards.chunks import Chunk
from meloformer.shards.convert import ConvertedPiece, convert_midi
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.manifest import SPLITS, ShardSettings
from meloformer.shards.pool import Died, local_engine
from meloformer.shards.sources import MidiFile, Source, Survey, open_source
from meloformer.shards.spill import SpillWriter

_FEW = 10_000
# What a core does with ordinary files, to say how many of them would be enough.
_FILES_PER_SECOND = 500
_MEGABYTE = 1 << 20
_TABLE_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class BenchDataConfig:
    """Flags of launch/bench/data.py."""

    midi: str | None = None
    """What --midi of launch/shard_data.py takes."""
    num_workers: str = "1,2"
    """Numbers of processes to try, with commas between."""
    against: Literal["miditok", "nothing"] = "nothing"
    """Also let this library turn the same files into REMI tokens, tokens only."""
    passes: int = 3
    """Times that each rate is measured; the table shows the median."""
    simulate: int | None = None
    """Made-up pieces to sort, place and write, for their memory."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        if self.midi is None and self.simulate is None:
            raise ConfigError("nothing to measure: give --midi, --simulate or both")
        if self.passes < 1:
            raise ConfigError(f"--passes {self.passes}: allowed from 1")
        if not self.workers:
            raise ConfigError(f"--num_workers {self.num_workers!r}: allowed e.g. 1,2")

    @property
    def workers(self) -> tuple[int, ...]:
        parts = self.num_workers.split(",")
        return tuple(map(int, parts)) if all(p.isdigit() and int(p) for p in parts) else ()


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One pass over all files with so many processes."""

    what: str
    num_workers: int
    files: int
    seconds: float
    start_up_seconds: float
    tokens: int
    notes: int | None = None
    bytes: int | None = None

    @property
    def work_seconds(self) -> float:
        return self.seconds - self.start_up_seconds

    @property
    def files_per_second_and_core(self) -> float:
        return self.files / self.work_seconds / self.num_workers


def bench_data(config: BenchDataConfig) -> None:
    console = Console(width=_TABLE_WIDTH)
    figures: dict[str, Any] = {}
    if config.midi is not None:
        rates = []
        for num_workers in config.workers:
            rates.append(_median(partial(rate_of_build, config.midi, num_workers), config.passes))
            if config.against == "miditok":
                rates.append(
                    _median(partial(rate_of_miditok, config.midi, num_workers), config.passes)
                )
        console.print(rates_table(config.midi, rates))
        figures["rates"] = [
            asdict(rate) | {"files_per_second_and_core": rate.files_per_second_and_core}
            for rate in rates
        ]
    if config.simulate is not None:
        found = {n: memory_in_own_process(n) for n in (_FEW, config.simulate)}
        console.print(memory_table(found))
        figures["memory"] = found
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


def _median(measure: Callable[[], Rate], passes: int) -> Rate:
    rates = sorted((measure() for _ in range(passes)), key=lambda r: r.files_per_second_and_core)
    return rates[passes // 2]


def rate_of_build(midi: str, num_workers: int) -> Rate:
    """Raw MIDI to written tars: chords, exact copies and near copies included."""
    with tempfile.TemporaryDirectory() as folder:
        start_up = _seconds(partial(_build, _first_file(open_source(midi)), folder, "one", 1))
        start = time.perf_counter()
        manifest = _build(open_source(midi), folder, "all", num_workers)
        seconds = time.perf_counter() - start
    rate = Rate(
        what="shard-data",
        num_workers=num_workers,
        files=manifest.num_in,
        seconds=seconds,
        start_up_seconds=start_up,
        tokens=sum(manifest.total(split, "tokens") for split in SPLITS),
        notes=sum(manifest.total(split, "notes") for split in SPLITS),
        bytes=sum(manifest.total(split, "bytes") for split in SPLITS),
    )
    check_rate(midi, rate)
    return rate


def check_rate(midi: str, rate: Rate) -> None:
    """Refuse a difference of two passes that the noise of the shorter one may outweigh.

    Raises:
        ConfigError: there are too few files.
    """
    if rate.work_seconds < rate.start_up_seconds / 2:
        needed = round(rate.start_up_seconds * _FILES_PER_SECOND * rate.num_workers)
        raise ConfigError(
            f"--midi {midi}: found {rate.files:,} files, done by {rate.num_workers} workers in "
            f"{rate.seconds:.1f} s where one file takes {rate.start_up_seconds:.1f} s; allowed: so "
            f"many that their work can be told from the start-up, about {needed:,}"
        )


def _build(source: Source, folder: str, name: str, num_workers: int) -> Any:
    output = Path(folder) / name
    return build_shards(source, output, _settings(), run=local_engine(num_workers))


def _settings() -> ShardSettings:
    return ShardSettings()


@dataclass(frozen=True)
class _FirstFile(Source):
    """The first file of a source that becomes a piece."""

    def survey(self) -> Survey:
        return Survey(1, "one")

    def files(self) -> Iterator[MidiFile]:
        for file in super().files():
            try:
                convert_midi(file.read(), file.name, _settings())
            except MidiError:
                continue
            yield file
            return


def _first_file(source: Source) -> Source:
    return _FirstFile(source.name, source.leaves)


def rate_of_miditok(midi: str, num_workers: int) -> Rate:
    """The same files through MidiTok's REMI, tokens only; those that it cannot read passed over."""
    if find_spec("miditok") is None:
        raise ConfigError(
            "--against miditok needs the extra `bench`; install it with "
            "`pip install 'meloformer[bench]'`"
        )
    files = list(open_source(midi).files())
    with multiprocessing.get_context("spawn").Pool(num_workers, _start_miditok) as pool:
        start_up = _seconds(lambda: pool.map(_count_remi, files[:num_workers], chunksize=1))
        start = time.perf_counter()
        counts = pool.map(_count_remi, files, chunksize=16)
        seconds = time.perf_counter() - start
    return Rate(
        what="MidiTok REMI",
        num_workers=num_workers,
        files=sum(count is not None for count in counts),
        seconds=seconds + start_up,
        start_up_seconds=start_up,
        tokens=sum(count or 0 for count in counts),
    )


_remi: Any = None


def _start_miditok() -> None:
    global _remi
    import miditok

    _remi = miditok.REMI(
        miditok.TokenizerConfig(
            use_programs=True,
            use_tempos=True,
            use_time_signatures=True,
        )
    )


def _count_remi(file: MidiFile) -> int | None:
    from symusic import Score

    try:
        tokens = _remi(Score.from_midi(file.read()))
    except Exception:  # what one library cannot read is not the point here
        return None
    return sum(map(len, tokens)) if isinstance(tokens, list) else len(tokens)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rates_table(midi: str, rates: list[Rate]) -> Table:
    """One line a pass; the last column says how many times as fast as MidiTok's."""
    table = Table(title=f"{midi}: MIDI to shards", title_justify="left")
    for name in (
        "",
        "workers",
        "files",
        "seconds",
        "start-up",
        "files/s/core",
        "tokens/s",
        "bytes/note",
        "x MidiTok",
    ):
        table.add_column(name, justify="right" if name else "left")
    others = {r.num_workers: r for r in rates if r.notes is None}
    for rate in rates:
        other = others.get(rate.num_workers)
        table.add_row(
            rate.what,
            str(rate.num_workers),
            f"{rate.files:,}",
            f"{rate.seconds:.1f}",
            f"{rate.start_up_seconds:.1f}",
            f"{rate.files_per_second_and_core:,.0f}",
            f"{rate.tokens / rate.work_seconds:,.0f}",
            f"{rate.bytes / rate.notes:.1f}" if rate.bytes and rate.notes else "",
            f"{rate.files_per_second_and_core / other.files_per_second_and_core:.1f}"
            if other is not None
            else "",
        )
    return table


def memory_in_own_process(num_pieces: int) -> dict[str, float]:
    """`memory_of` in a fresh process, whose peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of, (num_pieces,))


def memory_of(num_pieces: int) -> dict[str, float]:
    """Peak memory of a build of made-up pieces, conversion left out, and its seconds."""
    before = peak_bytes()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = _MadeUpSource(f"{num_pieces} made up", lambda: iter(()), num_pieces=num_pieces)
        build_shards(source, Path(folder) / "shards", _settings(), run=_made_up_engine)
    return {
        "megabytes_at_start": before / _MEGABYTE,
        "megabytes": peak_bytes() / _MEGABYTE,
        "seconds": time.perf_counter() - start,
    }


@dataclass(frozen=True)
class _MadeUpFile:
    name: str
    facts: dict[str, Any]

    def read(self) -> bytes:
        raise AssertionError("made-up files are never read")


@dataclass(frozen=True)
class _MadeUpSource(Source):
    num_pieces: int = 0

    def survey(self) -> Survey:
        return Survey(self.num_pieces, str(self.num_pieces))

    def files(self) -> Iterator[MidiFile]:
        return (_MadeUpFile(f"{number}.mid", {}) for number in range(self.num_pieces))


def _made_up_engine(
    task: Any, jobs: Iterable[Any], *, one_by_one: bool = False
) -> Iterator[tuple[Any, Any | Died]]:
    """Runs jobs in this process; a chunk of files becomes pieces made of random numbers."""
    pattern = _pattern()
    for job in jobs:
        if isinstance(job, Chunk):
            random = np.random.default_rng(job.number)
            with SpillWriter(task.keywords["spill"], job.number, job.names_sum) as writer:
                for _ in job.files:
                    writer.add(_made_up_piece(pattern, random))
            yield job, len(job.files)
        else:
            yield job, task(job)


def _pattern() -> ConvertedPiece:
    """A real piece, of which made-up ones differ by key, tune and signature."""
    from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi

    data = score_to_midi(next(islice(iter(default_corpus_paths()), 1)))
    return convert_midi(data, "pattern.mid", _settings())


def _made_up_piece(pattern: ConvertedPiece, random: np.random.Generator) -> ConvertedPiece:
    stored = pattern.stored
    return ConvertedPiece(
        stored=type(stored)(**{**vars(stored), "key": random.bytes(12).hex()}),
        tune=int.from_bytes(random.bytes(8), "big"),
        signature=random.integers(0, 2**32, NUM_HASHES, dtype=np.uint32),
        counts=pattern.counts,
    )


def memory_table(found: dict[int, dict[str, float]]) -> Table:
    table = Table(title="memory: sorting, placing and writing", title_justify="left")
    for name in ("pieces", "peak MB", "of it at start", "seconds"):
        table.add_column(name, justify="right")
    for num_pieces, figures in found.items():
        table.add_row(
            f"{num_pieces:,}",
            f"{figures['megabytes']:,.0f}",
            f"{figures['megabytes_at_start']:,.0f}",
            f"{figures['seconds']:,.0f}",
        )
    return table


if __name__ == "__main__":
    run_recipe(bench_data, BenchDataConfig)
