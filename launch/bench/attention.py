"""Sparse attention beside the fastest dense causal attention present: time, MFU, memory, graphs.

    python launch/bench/attention.py
    python launch/bench/attention.py --data data_shards/<name> --lengths 2048 8192 65536
    python launch/bench/attention.py --rules halves --block_size 64 --head_width 128
    python launch/bench/attention.py --rules hid --order bar --layout one_piece --json hid.json
    python launch/bench/attention.py --device cpu --lengths 256 512

Forward and backward of one layer's attention, and of the whole model with its loss, all candidates
in turns in one process. A CPU has no backward of the sparse kernel: there the rules run as dense
masks, which shows that the bench works and says nothing about speed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from meloformer.benchmarks.attention_bench import (
    FORMULA,
    Bench,
    Level,
    attention_table,
    claimed,
    in_order,
    measure,
)
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import RowKind, find_rows
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.circumstances import circumstances
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.masks import Order, rule_of
from meloformer.model.rules import load_rule
from meloformer.training.config import Fuse, ModelSize

ROOT = Path(__file__).resolve().parents[2]
# What a GPU is for, and what a CPU bears.
_UNGIVEN_SIZE: dict[str, ModelSize] = {"cuda": "large", "cpu": "tiny"}
_UNGIVEN_LENGTHS = {"cuda": (8192, 16384, 32768), "cpu": (512, 1024)}
_UNGIVEN_DTYPE: dict[str, Literal["bf16", "fp32"]] = {"cuda": "bf16", "cpu": "fp32"}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class BenchAttentionConfig:
    """Flags of launch/bench/attention.py."""

    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given, made up pieces if that is empty."""
    layout: RowKind = "packed"
    """Rows packed from the shards, or one long made up piece in each."""
    lengths: tuple[int, ...] = ()
    """Tokens of a row; 8192, 16384 and 32768 on CUDA, 512 and 1024 on a CPU if not given."""
    rules: tuple[str, ...] = ("halves", "museformer", "hid", "full")
    """Attention rules to measure: presets, or .json files of head groups."""
    order: Order | None = None
    """Storage order of all head groups; that of the rule if not given."""
    levels: tuple[Level, ...] = ("attention", "model")
    """One layer's attention alone, the whole model with its loss, or both."""
    model_size: ModelSize | None = None
    """Width, heads and depth; large on CUDA and tiny elsewhere if not given."""
    head_width: int | None = None
    """Width of a head; that of the size if not given."""
    block_size: int | None = None
    """Tokens along each side of a block; the default of training if not given."""
    fuse: Fuse = "auto"
    """Compile the pointwise parts of the models, the dense side's too; auto as training does."""
    batch_size: int = 1
    """Rows of a call."""
    dtype: Literal["bf16", "fp32"] | None = None
    """Of weights and attention; bf16 on CUDA and fp32 elsewhere if not given."""
    rounds: int = 7
    """Timed calls of each candidate, in turns."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 1 or more")
        block = self.block_size
        if block is not None and (block < 16 or block & (block - 1)):
            raise ConfigError(f"--block_size {block}: allowed: a power of two from 16")
        if any(length < 16 for length in self.lengths):
            raise ConfigError(f"--lengths {min(self.lengths)}: allowed 16 or more")


def bench_attention(config: BenchAttentionConfig) -> None:
    console = table_console()
    device = torch.device(choose_device(config.device))
    kind = "cuda" if device.type == "cuda" else "cpu"
    lengths = config.lengths or _UNGIVEN_LENGTHS[kind]
    size = config.model_size or _UNGIVEN_SIZE[kind]
    bench = Bench(
        config=sized_config(size, max(lengths), config.head_width),
        rules={name: in_order(rule_of(load_rule(name)), config.order) for name in config.rules},
        device=device,
        dtype=_DTYPES[config.dtype or _UNGIVEN_DTYPE[kind]],
        rounds=config.rounds,
        block_size=config.block_size,
        fuse=config.fuse,
    )
    bench.allow_graphs(lengths, config.batch_size)
    found = []
    for length in lengths:
        rows = find_rows(config.data, config.layout, length, config.batch_size)
        for level in config.levels:
            of_level = measure(bench, rows, level)
            console.print(attention_table(bench, size, rows, of_level))
            found += of_level
    console.print(FORMULA, highlight=False)
    if config.json:
        figures = claimed(found) | circumstances(device, ROOT)
        figures |= {"model_size": size, "formula": FORMULA, "rows": found}
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(bench_attention, BenchAttentionConfig)
