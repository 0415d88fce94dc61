"""MuseFormer beside plain decoders over MidiTok's REMI and Octuple: same notes, budget, size.

    python launch/tools/arena.py --data data_shards/<name> --minutes 10 --seeds 3
    python launch/tools/arena.py --data data_shards/<name> --notes 2000000 --systems museformer,remi
    python launch/tools/arena.py --model_size small --max_seq_len 8192 --json arena.json

Every system learns the same bars of the same training pieces in the same order, as far as its
budget goes, and is judged by the nats that it spends on the notes of the same held-out pieces:
all tokens of a piece over its notes. `pip install -c constraints.txt -e '.[bench]'` brings MidiTok.
How it is made fair, and what is not: docs/arena.md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from meloformer.benchmarks.arena import Arena, ArenaConfig
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.mixed_training import facts_of
from meloformer.command_line import check_json_file, run_recipe
from meloformer.plurals import counted

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What is compared, and where the figures go.

    Args:
        json: file for the figures.
        arena: what is trained, on what, for how long.
    """

    json: Path = Path("arena.json")
    arena: ArenaConfig = field(default_factory=ArenaConfig)

    def __post_init__(self) -> None:
        check_json_file(self.json)


def arena(flags: Flags) -> None:
    """Train in turns, judge, print, write."""
    console, ring = table_console(), Arena(flags.arena)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)
        console.file.flush()  # long to wait for a line, where output goes to a file

    say(title_of(ring))
    say(ring.describe())
    report = ring.run(say)
    console.print(report.table(title_of(ring)))
    facts = {"title": title_of(ring)} | facts_of(ring.config, ring.device, ROOT)
    flags.json.write_text(json.dumps(facts | ring.facts() | report.to_json(), indent=2) + "\n")
    say(f"nats: all tokens of a piece over its notes, an upper bound; all figures: {flags.json}")


def title_of(ring: Arena) -> str:
    """Conditions in a line."""
    config, name = ring.config, Path(str(ring.config.data)).name
    where = torch.cuda.get_device_name() if ring.device.type == "cuda" else "CPU"
    return (
        f"{name}, {config.model_size}, {config.budget_in_words}, "
        f"{counted(config.seeds, 'seed')}, rows of {config.max_seq_len:,} tokens, "
        f"{config.notes_per_batch} notes a step, {where}"
    )


if __name__ == "__main__":
    run_recipe(arena, Flags)
