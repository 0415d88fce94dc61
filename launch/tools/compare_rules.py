"""Which attention rule learns most, at equal steps and at equal seconds.

    python launch/tools/compare_rules.py --data data_shards/<name> --minutes 60 --seeds 3
    python launch/tools/compare_rules.py --data data_shards/<name> --rules halves,hid,mine.json
    python launch/tools/compare_rules.py --model_size small --max_seq_len 16384 --json rules.json

Every candidate trains on the same rows in the same order from the same weights, a few steps at a
time in turns. `--json` takes the curves, and a picture of them goes beside it (.png). Seconds are
those of training alone; on a CPU they are CPU seconds, and since every rule computes all pairs
there (the sparse kernel needs CUDA), only a GPU can say what a sparse rule saves.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.compare_rules import DEFAULT_RULE, DENSE_TWIN, CompareRulesConfig, Race
from meloformer.benchmarks.mixed_training import facts_of
from meloformer.benchmarks.rule_curves import Comparison, save_chart
from meloformer.command_line import check_json_file, run_recipe
from meloformer.model.counts import num_parameters
from meloformer.plurals import counted

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What is compared, and where the figures go.

    Args:
        json: file for the figures, written anew after each validation.
        compare: what is trained, and for how long.
    """

    json: Path | None = None
    compare: CompareRulesConfig = field(default_factory=CompareRulesConfig)

    def __post_init__(self) -> None:
        check_json_file(self.json)


def compare_rules(flags: Flags) -> None:
    """Train in turns, print, write."""
    console, race = table_console(), Race(flags.compare)
    for line in describe(race):
        console.print(line, highlight=False, soft_wrap=True)
    for comparison in race.run():
        best = comparison.standings()[0]
        console.print(
            f"step {comparison.num_steps:,}: at {comparison.equal_seconds:,.0f} s {best.name} is "
            f"ahead with {best.at_equal_seconds} nats per note",
            highlight=False,
        )
        console.file.flush()  # an hour is long to wait for a line, where output goes to a file
        if flags.json:
            save(flags.json, race, comparison)
    console.print(comparison.table(title_of(race)))
    console.print(
        comparison.verdict(str(DEFAULT_RULE), references=[DENSE_TWIN]),
        highlight=False,
        soft_wrap=True,
    )
    if flags.json:
        console.print(
            f"{flags.json} and {flags.json.with_suffix('.png').name}", highlight=False, markup=False
        )


def describe(race: Race) -> list[str]:
    """What is compared, a line each."""
    lines = [title_of(race)]
    for candidate in race.candidates:
        model = race.models[candidate.name]
        lines.append(
            f"{candidate.name}: {num_parameters(model):,} parameters, {model.num_heads} heads; "
            f"{candidate.describe()}"
        )
    return lines


def title_of(race: Race) -> str:
    """Conditions in a line."""
    config, name = race.config, Path(str(race.config.data)).name
    where = torch.cuda.get_device_name() if race.device.type == "cuda" else "CPU"
    return (
        f"{name}, {config.model_size}, {counted(config.batch_size, 'row')} of "
        f"{config.max_seq_len:,} tokens, {counted(config.seeds, 'seed')}, learning rate "
        f"{config.learning_rate:g}, {race.backend} attention, {where}"
    )


def save(path: Path, race: Race, comparison: Comparison) -> None:
    """Write the figures and their picture."""
    rules = {candidate.name: candidate.describe() for candidate in race.candidates}
    facts = facts_of(race.config, race.device, ROOT) | {"rules": rules}
    path.write_text(json.dumps(facts | comparison.to_json(), indent=2) + "\n")
    save_chart(comparison, path.with_suffix(".png"), title_of(race))


if __name__ == "__main__":
    run_recipe(compare_rules, Flags)
