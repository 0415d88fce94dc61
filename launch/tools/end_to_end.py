"""The whole road, every promise checked: scores, shards, training, a kill, a resume, MIDI.

make demo

python launch/tools/end_to_end.py --num_steps 40 --num_samples 4     # a quick look
"""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from miditoolkit import MidiFile
from rich.console import Console
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.errors import TrainingError
from meloformer.evaluation.likelihood import nats_per_token, scoring_windows, without_summaries
from meloformer.evaluation.ngram import InterpolatedNgram
from meloformer.evaluation.recipes import run, start
from meloformer.midi.read import read_midi
from meloformer.model.weights import find_model_folder, load_model
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import VOCAB_SIZE

NGRAM_ORDER = 4
MAX_NATS = 1.35
MIN_LEAD = 0.4

console = Console()


@dataclass(frozen=True, kw_only=True)
class EndToEndConfig:
    """Flags of launch/tools/end_to_end.py.

    Args:
        data: shard folder; made from music21's Bach chorales where it is missing.
        output: run folder; a new one if not given.
        num_steps: optimizer steps.
        kill_after: steps past the checkpoint at half time before the run is killed.
        num_samples: pieces to generate.
        max_seq_len: tokens of a row.
        json: write the figures to this file too.
    """

    data: Path = Path("data_shards/chorales")
    output: Path | None = None
    num_steps: int = 520
    kill_after: int = 5
    num_samples: int = 20
    max_seq_len: int = 1024
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """A line of the final table; `passed` None is information only, `figures` are for --json."""

    what: str
    found: str
    goal: str = ""
    passed: bool | None = None
    figures: dict[str, float] = field(default_factory=dict)


def main(config: EndToEndConfig) -> int:
    """Walk the road, print the table; 1 if a promise fails."""
    output = config.output or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S", time.gmtime())
    if not (config.data / "manifest.json").is_file():
        run("shard_data.py", "--midi", "chorales", "--output", config.data)
    rows = [count_pieces(config.data), train_killed_and_resumed(config, output)]
    rows += score(config, output)
    rows += generate(config, output)
    rows.append(Row("log", str(output / "train.log")))

    table = Table(title="The road, end to end")
    for column in ("what", "found", "goal", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = {None: "", True: "[green]PASS", False: "[red]FAIL"}[row.passed]
        table.add_row(row.what, row.found, row.goal, mark)
    console.print(table)
    if config.json:
        figures = {name: value for row in rows for name, value in row.figures.items()}
        config.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(row.passed is False for row in rows))


def count_pieces(data: Path) -> Row:
    """Pieces of every split."""
    shards = ShardFolder.open(data)
    counts = {name: shards.split(name).num_pieces for name in ("train", "valid", "test")}
    return Row("pieces", ", ".join(f"{name} {count}" for name, count in counts.items()))


def train_killed_and_resumed(config: EndToEndConfig, output: Path) -> Row:
    """Train to past half time, kill without warning, resume; compare the steps done twice."""
    half = config.num_steps // 2
    # fmt: off
    flags = [
        "--data", config.data, "--output", output, "--model_size", "tiny",
        "--max_seq_len", config.max_seq_len, "--collate", "pack", "--batch_size", 2,
        "--gradient_accumulation_steps", 1, "--num_workers", 0, "--learning_rate", 4e-3,
        "--warmup_steps", config.num_steps // 12, "--max_steps", config.num_steps,
        "--save_every", half, "--validate_every", 0, "--validation_rows", 48,
    ]
    # fmt: on
    process = start("train.py", *flags)
    metrics = output / "metrics.jsonl"
    while process.poll() is None and len(losses(metrics)) < half + config.kill_after:
        time.sleep(0.2)
    if process.poll() is not None:
        raise TrainingError(f"training ended by itself with status {process.returncode}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = losses(metrics)
    console.print(f"killed after step {max(before)}; resuming from the checkpoint at {half}")

    run("train.py", *flags, "--resume", "auto")
    after = losses(metrics)
    twice = [step for step in before if step > half and step in after]
    difference = max(abs(before[step] - after[step]) for step in twice)
    return Row(
        f"resume difference over {len(twice)} steps",
        f"{difference:g}",
        "0",
        difference == 0,
        {"resume_difference": difference},
    )


def losses(metrics: Path) -> dict[int, float]:
    """Loss by step of the whole lines of metrics.jsonl."""
    if not metrics.is_file():
        return {}
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}


def score(config: EndToEndConfig, output: Path) -> list[Row]:
    """Validation pieces: the model, itself without summaries, an n-gram on the same tokens."""
    shards = ShardFolder.open(config.data)
    windows = scoring_windows(shards.split("valid"), config.max_seq_len)
    model = load_model(find_model_folder(output))
    ngram = InterpolatedNgram(NGRAM_ORDER, VOCAB_SIZE)
    ngram.fit(scoring_windows(shards.split("train"), config.max_seq_len))
    nats = nats_per_token(model, windows)
    blind = nats_per_token(without_summaries(model), windows)
    baseline = ngram.nats_per_token(windows)
    return [
        Row(
            "validation nats per token",
            f"{nats:.3f}",
            f"< {MAX_NATS}",
            nats < MAX_NATS,
            {"valid_nats": nats},
        ),
        Row(
            f"the same of a {NGRAM_ORDER}-gram",
            f"{baseline:.3f}",
            f"> {nats + MIN_LEAD:.3f}",
            baseline > nats + MIN_LEAD,
            {"lead_over_ngram": baseline - nats},
        ),
        Row(
            "the same with summaries zeroed",
            f"{blind:.3f}",
            f"> {nats:.3f}",
            blind > nats,
            {"lead_of_summaries": blind - nats},
        ),
    ]


def generate(config: EndToEndConfig, output: Path) -> list[Row]:
    """Sample pieces; two readers must find the same notes in every file."""
    first = output / "samples" / "piece.mid"
    run(
        "generate.py", "--checkpoint", output, "--output", first, "--bars", 8,
        "--num_samples", config.num_samples, "--time_signature", "4/4", "--seed", 0,
    )  # fmt: skip
    paths = sorted(first.parent.glob("*.mid"))
    sound = 0
    for path in paths:
        own = sum(len(track.notes) for track in read_midi(path).tracks)
        other = sum(len(track.notes) for track in MidiFile(str(path)).instruments)
        sound += int(own == other > 0)
    found = f"{sound}/{config.num_samples}"
    goal = f"{config.num_samples}/{config.num_samples}"
    figures = {"decoded_share": 100 * sound / config.num_samples}
    rows = [
        Row("generated pieces decoded and read by miditoolkit", found, goal, found == goal, figures)
    ]
    if paths:
        rows += [Row("MIDI", str(paths[0])), Row("PNG", str(paths[0].with_suffix(".png")))]
    return rows


if __name__ == "__main__":
    run_recipe(main, EndToEndConfig)
