"""The full training step of a size and rule beside rule full and the dense twin, in turns.

    python launch/bench/train.py
    python launch/bench/train.py --model_size large --max_seq_len 8192 --data data_shards/<name>
    python launch/bench/train.py --attention museformer --against halves full --json train.json
    python launch/bench/train.py --device cpu --max_seq_len 256 --batch_size 1 --num_slices 1

Forward, loss, backward and optimizer through the engine of training, fed by its stream; the wait
for data and the busy share are those of the first candidate alone, in steps without a break. The
dense twin has no summaries and takes the fastest dense causal attention present. A CPU has no
backward of the sparse kernel: there the rules run as dense masks, which shows that the bench works
and says nothing about speed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from meloformer.benchmarks.attention_bench import FORMULA
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import find_pieces, find_rows
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.circumstances import circumstances
from meloformer.benchmarks.train_bench import (
    claimed,
    measure_steps,
    settle,
    steps_table,
    trainees_of,
)
from meloformer.benchmarks.workload import Workload
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.config import Checkpointing
from meloformer.model.device import DeviceName
from meloformer.model.masks import BLOCK_SIZES
from meloformer.training.config import UNGIVEN, Fuse, ModelSize, TrainConfig
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.ranks import start_ranks

ROOT = Path(__file__).resolve().parents[2]
# What a CPU bears.
_CPU_BATCH, _CPU_ACCUMULATION = 2, 2


@dataclass(frozen=True, kw_only=True)
class BenchTrainConfig:
    """Flags of launch/bench/train.py."""

    config: Path = DEFAULT_DS_CONFIG
    """ds_configs file: how to partition."""
    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given, made up pieces if that is empty."""
    model_size: ModelSize | None = None
    """Small on CUDA and tiny elsewhere if not given."""
    max_seq_len: int | None = None
    """Tokens of a row; longer on CUDA than elsewhere if not given. Rows are packed full."""
    attention: str = TrainConfig.attention
    """Rule that all is about: a preset, or a .json file of head groups."""
    against: tuple[str, ...] = ("full",)
    """Rules beside it; the dense twin always is."""
    batch_size: int | None = None
    """Rows of a micro-step; that of training on CUDA, fewer elsewhere if not given."""
    gradient_accumulation_steps: int | None = None
    """Micro-steps of a step; those of training on CUDA, fewer elsewhere if not given."""
    num_workers: int | None = None
    """Data processes of each candidate; those of training on CUDA, none elsewhere if not given."""
    checkpointing: Checkpointing = "none"
    """What the backward pass computes again."""
    fuse: Fuse = TrainConfig.fuse
    """Compile the pointwise parts of all candidates, the twin too; auto as training does."""
    block_size: int = TrainConfig.block_size
    """Tokens along each side of a block of the attention plan."""
    num_slices: int = 5
    """Turns of each candidate."""
    steps_per_slice: int = 2
    """Optimizer steps of a turn."""
    steady_steps: int = 10
    """Steps of the first candidate without a break, at the end."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        lowest = {"num_workers": 0, "max_seq_len": 16}
        for name in (
            *("batch_size", "gradient_accumulation_steps", "num_slices", "steps_per_slice"),
            *("steady_steps", "num_workers", "max_seq_len"),
        ):
            value, allowed = getattr(self, name), lowest.get(name, 1)
            if value is not None and value < allowed:
                raise ConfigError(f"--{name} {value}: allowed {allowed} or more")
        if self.block_size not in BLOCK_SIZES:
            allowed_sizes = " or ".join(map(str, BLOCK_SIZES))
            raise ConfigError(f"--block_size {self.block_size}: allowed {allowed_sizes}")


def bench_train(config: BenchTrainConfig) -> None:
    console = table_console()
    ranks = start_ranks(config.device)
    is_cuda = ranks.device.type == "cuda"
    ungiven = UNGIVEN["cuda" if is_cuda else "cpu"]
    size: ModelSize = config.model_size or ungiven["model_size"]
    max_seq_len: int = config.max_seq_len or ungiven["max_seq_len"]
    batch_size = config.batch_size or (TrainConfig.batch_size if is_cuda else _CPU_BATCH)
    accumulation = config.gradient_accumulation_steps or (
        TrainConfig.gradient_accumulation_steps if is_cuda else _CPU_ACCUMULATION
    )
    num_workers = TrainConfig.num_workers if is_cuda else 0
    index, source = find_pieces(config.data)
    settings = settle(
        index,
        ranks,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        accumulation=accumulation,
        num_workers=num_workers if config.num_workers is None else config.num_workers,
        config=config.config,
        checkpointing=config.checkpointing,
        fuse=config.fuse,
        block_size=config.block_size,
    )
    model = sized_config(size, max_seq_len)
    rows = find_rows(config.data, "packed", max_seq_len, batch_size)
    rules = dict.fromkeys((config.attention, *config.against))
    found = measure_steps(
        settings,
        trainees_of(settings, model, tuple(rules), rows),
        num_slices=config.num_slices,
        steps_per_slice=config.steps_per_slice,
        steady_steps=config.steady_steps,
    )
    title = (
        f"training step, {size}, {accumulation} x {batch_size} x {max_seq_len:,} tokens on "
        f"{ranks.device.type}{'' if is_cuda else '; rules as dense masks, no sparse kernel'}; "
        f"{source}"
    )
    console.print(steps_table(title, found))
    console.print(FORMULA, highlight=False)
    if config.json:
        workload = Workload(model_size=size)
        figures = claimed(found, workload) | circumstances(ranks.device, ROOT)
        figures |= {"model_size": size, "max_seq_len": max_seq_len, "rows": found}
        config.json.write_text(json.dumps(figures | {"formula": FORMULA}, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(bench_train, BenchTrainConfig)
