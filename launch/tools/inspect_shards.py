"""Say what a shard folder holds, print one piece of it, or prove that it is whole.

    python launch/tools/inspect_shards.py data_shards/default
    python launch/tools/inspect_shards.py data_shards/default --piece 0a1b2c
    python launch/tools/inspect_shards.py data_shards/default --verify
    python launch/tools/inspect_shards.py data_shards/default --with webdataset

`--piece` takes a key or its start, `--verify` recomputes every sum and decodes every piece, and
`--with` reads the same pieces through another library alone. Exit code: 0 where all is well,
1 where something is wrong (one line each), 2 where the folder cannot be read at all.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from meloformer.command_line import run_recipe
from meloformer.errors import ShardError
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder
from meloformer.shards.summary import quantised_table, summary_table
from meloformer.shards.verify import differences_from_webdataset, find_faults
from meloformer.tokens.vocabulary import Kind, token, token_name

_MOST_FAULTS_PRINTED = 20


@dataclass(frozen=True, kw_only=True)
class InspectShardsConfig:
    """Flags of launch/tools/inspect_shards.py."""

    shards: tyro.conf.Positional[Path] = Path("data_shards/default")
    """Shard folder."""
    piece: str | None = None
    """Print the piece with this key, or whose key starts so."""
    verify: bool = False
    """Recompute every sum and decode every piece."""
    against: Annotated[Literal["webdataset"] | None, tyro.conf.arg(name="with")] = None
    """Read the same pieces through this library alone, and compare."""


def inspect_shards(config: InspectShardsConfig) -> int:
    console = Console(soft_wrap=True)
    folder = ShardFolder.open(config.shards)
    if config.piece is not None:
        print_piece(console, folder, config.piece)
        return 0
    console.print(summary_table(folder.manifest, title=str(config.shards)))
    console.print(quantised_table(folder.manifest))
    faults = 0
    if config.verify:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("verifying")
            found = list(
                find_faults(folder, lambda done, n: progress.update(task, completed=done, total=n))
            )
        faults += report(console, "verify", found)
    if config.against is not None and not faults:
        faults += report(console, config.against, differences_from_webdataset(folder))
    return 1 if faults else 0


def report(console: Console, name: str, faults: Iterable[str]) -> int:
    """Print what is wrong, and how much of it there is."""
    count = 0
    for count, fault in enumerate(faults, start=1):
        if count <= _MOST_FAULTS_PRINTED:
            console.print(f"wrong: {fault}", markup=False, highlight=False)
    if count > _MOST_FAULTS_PRINTED:
        console.print(f"... and {count - _MOST_FAULTS_PRINTED} more")
    console.print(f"{name}: {f'{count} faults' if count else 'all pieces and sums are right'}")
    return count


def print_piece(console: Console, folder: ShardFolder, key: str) -> None:
    """Print facts and tokens of the first piece whose key starts so, a line for each bar."""
    for split in SPLITS:
        index = folder.split(split)
        for piece in range(index.num_pieces):
            if index.key(piece).startswith(key):
                facts = index.facts(piece)
                console.print(f"{split}, piece {piece}, key {index.key(piece)}")
                console.print_json(json.dumps(facts, ensure_ascii=False))
                text = "".join(
                    ("\n" if token(i).kind == Kind.BAR else " ") + token_name(i)
                    for i in index.read(piece).tolist()
                )
                console.print(text.strip(), markup=False, highlight=False)
                return
    raise ShardError(
        f"{folder.path}: no piece whose key starts with {key!r} among "
        f"{folder.manifest.num_pieces}; keys are the file names in its tars"
    )


if __name__ == "__main__":
    run_recipe(inspect_shards, InspectShardsConfig)
