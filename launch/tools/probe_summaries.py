"""Say what can be read off the summaries of each layer: key, chord, tempo, instruments, density.

    python launch/tools/probe_summaries.py --checkpoint runs/<name> --data data_shards/<name>
    python launch/tools/probe_summaries.py --data data_shards/<name> --train_pieces 200

Linear probes, one vector a bar: the bar's summary after a layer, against the mean of the bar's
tokens after the same layer (layer 0: of their embeddings) and against answers that look at nothing.
They learn on pieces of train and are scored on pieces of valid and test. Key and chord: share of
bars; instruments: F1 over bars; tempo and density: share of the variance that is explained. `above
chance` is the mean way from chance to a perfect score. The JSON holds 95 % intervals over pieces.
"""

if __name__ == "__main__":
    from meloformer.interrupts import end_at_signals

    end_at_signals()

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from meloformer.bridge.base_and_shards import SummarisingConfig
from meloformer.command_line import check_json_file, run_recipe
from meloformer.evaluation.bar_facts import QUESTIONS
from meloformer.evaluation.probe_scores import Score
from meloformer.evaluation.probes import ProbeSettings, ProbeTable, num_pieces, probe
from meloformer.model.weights import model_fingerprint

# Of a table in a file or a pipe, where nobody's terminal says how wide it may be.
_TABLE_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SummarisingConfig):
    """Flags of launch/tools/probe_summaries.py.

    Args:
        probes: what is learned from, and how.
        json: file for the figures.
    """

    probes: ProbeSettings = field(default_factory=ProbeSettings)
    json: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_json_file(self.json)


def main(config: ProbeConfig) -> None:
    """Load, probe, report."""
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    model, folder, shards = config.load()
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("reading pieces", total=num_pieces(shards, config.probes))
        table = probe(
            model,
            shards,
            config.windows,
            config.probes,
            batch_size=config.batch_size,
            on_pieces=lambda count: progress.advance(task, count),
        )
    console.print(as_table(table, f"{folder}, {shards.storage.name}"))
    console.print(
        f"learned from {table.num_bars[0]:,} bars of {table.num_pieces[0]} pieces, scored on "
        f"{table.num_bars[1]:,} of {table.num_pieces[1]}; {time.perf_counter() - started:.1f} s"
    )
    if config.json:
        facts = {
            "checkpoint": str(folder),
            "fingerprint": model_fingerprint(folder),
            "data": shards.storage.name,
            "shards_manifest_sha256": shards.manifest_sha256,
            **asdict(config.probes),
        }
        config.json.write_text(json.dumps(facts | table.to_json(), indent=2) + "\n")


def as_table(table: ProbeTable, title: str) -> Table:
    """Scores, a row per layer and stream."""
    shown = Table("layer", "of a bar", title=title, title_justify="left")
    for name in (*(question.name for question in QUESTIONS), "above chance"):
        shown.add_column(name, justify="right")
    for stream, scores in table.scores.items():
        of_stream = f"{table.above_chance(stream):.3f}"
        name = "mean of tokens" if stream.name == "tokens" else "summary"
        shown.add_row(str(stream.layer), name, *map(as_text, scores.values()), of_stream)
    shown.add_row("", "nothing (chance)", *map(as_text, table.chance.values()), f"{0:.3f}")
    return shown


def as_text(score: Score) -> str:
    """A score; nothing where the question has no answer in these pieces."""
    return "-" if score.value is None else f"{score.value:.3f}"


if __name__ == "__main__":
    run_recipe(main, ProbeConfig)
