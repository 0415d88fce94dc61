"""Say what a shard folder holds, print a shard or a piece of it, or prove that it is whole.

    python launch/tools/inspect_shards.py data_shards/default
    python launch/tools/inspect_shards.py data_shards/default --split valid
    python launch/tools/inspect_shards.py data_shards/default --shard train/shard-000003
    python launch/tools/inspect_shards.py data_shards/default --piece 0a1b2c
    python launch/tools/inspect_shards.py data_shards/default --piece valid:0
    python launch/tools/inspect_shards.py data_shards/default --piece train/shard-000003:17
    python launch/tools/inspect_shards.py data_shards/default --verify --num_workers 16
    python launch/tools/inspect_shards.py https://host/shards --verify --split test
    python launch/tools/inspect_shards.py data_shards/default --with webdataset

A folder or a URL. `--piece` takes a key, a start of it that no other key has, `split:number` or
`shard:row`, counted from 0. `--verify` recomputes every sum and decodes every piece; of one split
alone where `--split` names it. `--with` reads the same pieces through another library alone.
`--json` prints one JSON object instead of tables.

Exit code: 0 where all is well, 1 where something is wrong (one line each) or the counts do not add
up (in = pieces + duplicates + rejected), 2 where the folder cannot be read at all.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.shards.against_webdataset import differences_from_webdataset
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.longest import longest_of
from meloformer.shards.look_up import find_piece, find_shard, piece_text, pieces_of_shard
from meloformer.shards.manifest import (
    MANIFEST_NAME,
    SPLITS,
    CountError,
    Manifest,
    check_tokenizer,
    parse_manifest,
)
from meloformer.shards.reader import ShardFolder
from meloformer.shards.storage import open_storage
from meloformer.shards.summary import (
    longest_table,
    pieces_table,
    quantised_table,
    shards_table,
    summary_table,
)
from meloformer.shards.verify import find_faults

_MOST_FAULTS_OF_A_FILE = 20
_WIDTH_OF_A_FILE = 250


@dataclass(frozen=True, kw_only=True)
class InspectShardsConfig:
    """Flags of launch/tools/inspect_shards.py."""

    shards: tyro.conf.Positional[str] = "data_shards/default"
    """Shard folder, or its URL."""
    split: Literal["train", "valid", "test"] | None = None
    """List the shards of this split; with --verify or --with, read no other."""
    shard: str | None = None
    """List the pieces of this shard, as `train/shard-000003`; goes with none of --split, --piece,
    --verify, --with."""
    piece: str | None = None
    """Print the piece with this key, or the only one whose key starts so, or `valid:0` (number in a
    split) or `train/shard-000003:0` (row of a shard); goes with none of --split, --shard, --verify,
    --with."""
    verify: bool = False
    """Recompute every sum and decode every piece."""
    against: Annotated[Literal["webdataset"] | None, tyro.conf.arg(name="with")] = None
    """Read the same pieces through this library alone, and compare."""
    num_workers: int = 1
    """Processes that verify."""
    json: bool = False
    """Print one JSON object."""
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"--num_workers {self.num_workers}: allowed 1 or more")
        given = {
            "--piece": self.piece,
            "--shard": self.shard,
            "--split": self.split,
            "--verify": self.verify,
            "--with": self.against,
        }
        asked = [flag for flag, value in given.items() if value not in (None, False)]
        if len(asked) > 1 and not {"--piece", "--shard"}.isdisjoint(asked):
            raise ConfigError(
                f"found {' and '.join(asked)} together; --piece and --shard each stand alone: a "
                "piece of a shard is --piece train/shard-000003:0, of a split --piece valid:0"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are to be read."""
        return SPLITS if self.split is None else (self.split,)


def inspect_shards(config: InspectShardsConfig) -> int:
    # Where nobody looks on, lines are not to be broken: grep and less read them. And tables go
    # nowhere where one object is to be printed.
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    console = Console(soft_wrap=True, width=width, quiet=config.json)
    found: dict[str, Any] = {"shards": config.shards}
    faults: list[str] = []
    try:
        if config.verify:
            verified, faults = prove(config, console)
            found |= {"verified": verified, "faults": faults}
        else:
            found |= look(config, console)
        if config.against is not None and not faults:
            folder = ShardFolder.open(config.shards, config.cache)
            faults = found["faults"] = list(differences_from_webdataset(folder, config.splits))
            report(console, config.against, faults)
    except CountError as error:
        faults = found["faults"] = [str(error)]
        report(console, "counts", faults)
    if config.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    return 1 if faults else 0


def look(config: InspectShardsConfig, console: Console) -> dict[str, Any]:
    """Print the part of a folder that was asked for; returns it as JSON."""
    folder = ShardFolder.open(config.shards, config.cache)
    if config.piece is not None:
        piece = find_piece(folder, config.piece)
        console.print(f"{piece.split}:{piece.number}, key {piece.key}")
        console.print_json(json.dumps(piece.facts, ensure_ascii=False))
        console.print(piece_text(piece), markup=False, highlight=False)
        return piece.to_json()
    if config.shard is not None:
        split, number = find_shard(folder, config.shard)
        pieces = list(pieces_of_shard(folder, split, number))
        console.print(pieces_table(pieces, title=config.shard))
        return {"shard": config.shard, "pieces": pieces}
    if config.split is not None:
        console.print(shards_table(folder.manifest, config.split))
        return folder.manifest.to_json()["splits"][config.split]
    console.print(summary_table(folder.manifest, title=folder.storage.name))
    console.print(quantised_table(folder.manifest))
    longest = longest_of(folder)
    if longest is None:
        return folder.manifest.to_json()
    console.print(longest_table(longest))
    return folder.manifest.to_json() | {"longest": longest.to_json()}


def prove(config: InspectShardsConfig, console: Console) -> tuple[dict[str, int], list[str]]:
    """Verify; a missing or damaged shard is a fault among others here, no reason to stop."""
    storage = open_storage(config.shards, config.cache)
    place = f"{storage.name}/{MANIFEST_NAME}"
    text = storage.read_bytes(MANIFEST_NAME)
    manifest = parse_manifest(text, place, counts_must_fit=False)
    check_tokenizer(storage.name, manifest)
    console.print(summary_table(manifest, title=storage.name))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("verifying")
        faults = list(
            find_faults(
                storage,
                manifest,
                splits=config.splits,
                num_workers=config.num_workers,
                on_progress=lambda done, n: progress.update(task, completed=done, total=n),
            )
        )
    report(console, "verify", faults)
    return counts(manifest, config.splits), faults


def counts(manifest: Manifest, splits: tuple[str, ...]) -> dict[str, int]:
    """What was to be verified."""
    shards = [shard for split in splits for shard in manifest.splits[split]]
    return {"shards": len(shards), "pieces": sum(shard.pieces for shard in shards)}


def report(console: Console, name: str, faults: list[str]) -> None:
    """Print what is wrong, and how much of it there is: of each file the first few lines."""
    lines = []
    of_place: Counter[str] = Counter()
    for fault in faults:
        place = fault.split(": ", 1)[0]
        of_place[place] += 1
        if of_place[place] <= _MOST_FAULTS_OF_A_FILE:
            lines.append(f"wrong: {fault}")
    lines += [
        f"wrong: {place}: {count - _MOST_FAULTS_OF_A_FILE} more; --json prints all"
        for place, count in of_place.items()
        if count > _MOST_FAULTS_OF_A_FILE
    ]
    num = len(faults)
    said = f"{num} fault{'s' * (num > 1)}" if num else "all pieces and sums are right"
    console.print("\n".join([*lines, f"{name}: {said}"]), markup=False, highlight=False)


if __name__ == "__main__":
    run_recipe(inspect_shards, InspectShardsConfig)
