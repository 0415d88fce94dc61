"""What saving costs: the same steps without a checkpoint, with one beside them, with one between.

    python launch/bench/checkpoint.py
    python launch/bench/checkpoint.py --model_size large --output runs/bench --json saving.json
    python launch/bench/checkpoint.py --device cpu --model_size small --max_seq_len 256 --steps 10
    torchrun --nproc_per_node 8 launch/bench/checkpoint.py --model_size large --output runs/bench

The columns: seconds longer than the same turn without a save, that as a share of 200 steps, how
long the step is held, and when the checkpoint is there. --output says which disk is asked about.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import find_pieces
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.checkpoint_bench import measure_saving, saving_table
from meloformer.benchmarks.circumstances import circumstances
from meloformer.benchmarks.stepper import Stepper, Trainee
from meloformer.benchmarks.train_bench import settle
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName
from meloformer.training.config import UNGIVEN, ModelSize, TrainConfig
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.ranks import start_ranks

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class BenchCheckpointConfig:
    """Flags of launch/bench/checkpoint.py."""

    config: Path = DEFAULT_DS_CONFIG
    """ds_configs file: how to partition."""
    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given, made up pieces if that is empty."""
    model_size: ModelSize | None = None
    """Small on CUDA and tiny elsewhere if not given."""
    max_seq_len: int | None = None
    """Tokens of a row; longer on CUDA than elsewhere if not given."""
    batch_size: int = 1
    """Rows of a micro-step, one a step."""
    steps: int = 20
    """Optimizer steps of a turn."""
    turns: int = 5
    """Turns of each way."""
    output: Path | None = None
    """Folder on the disk that is asked about; the system's temporary one if not given."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        for name in ("batch_size", "steps", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 1 or more")


def bench_checkpoint(config: BenchCheckpointConfig) -> None:
    ranks = start_ranks(config.device)
    ungiven = UNGIVEN["cuda" if ranks.device.type == "cuda" else "cpu"]
    size: ModelSize = config.model_size or ungiven["model_size"]
    max_seq_len: int = config.max_seq_len or ungiven["max_seq_len"]
    index, source = find_pieces(config.data)
    settings = settle(
        index,
        ranks,
        max_seq_len=max_seq_len,
        batch_size=config.batch_size,
        accumulation=1,
        num_workers=0,
        config=config.config,
        checkpointing="none",
        fuse=TrainConfig.fuse,
        block_size=TrainConfig.block_size,
    )
    stepper = Stepper(
        settings=settings, trainee=Trainee(name=size, config=sized_config(size, max_seq_len))
    )
    if config.output:
        config.output.mkdir(parents=True, exist_ok=True)
    made = ranks.on_first(lambda: tempfile.mkdtemp(prefix="bench-", dir=config.output))
    try:
        found = measure_saving(stepper, Path(made), steps=config.steps, turns=config.turns)
    finally:
        stepper.close()
    if ranks.is_first:
        title = (
            f"saving, {size}, {ranks.world_size} rank(s) on {ranks.device.type}, {config.steps} "
            f"steps of {config.batch_size} x {max_seq_len:,} tokens a turn; {source}"
        )
        table_console().print(saving_table(title, found))
        if config.json:
            facts = {"circumstances": circumstances(ranks.device, ROOT), "ways": found}
            config.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(bench_checkpoint, BenchCheckpointConfig)
