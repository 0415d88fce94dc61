"""Several GPUs: speed on 1, 2, ... ranks as measured here, and on 8 to 64 as modelled.

    python launch/bench/scaling.py --data data_shards/<name>
    python launch/bench/scaling.py --data data_shards/<name> --ranks 1 2 4 --model_size large
    python launch/bench/scaling.py --measure off --card H800 --node_gb_s 165 --gpus 8 16 32 64
    python launch/bench/scaling.py --measure off --tokens_per_second 150000 --sizes large
    python launch/bench/scaling.py --measure off --gpus_per_node 4 --network_gb_s 20 --json s.json

Every rank has the same work, so that more ranks are a larger step. On a CPU all ranks share its
cores: that shows that several work together, and says nothing about speed.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import BenchRows, find_rows
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.circumstances import circumstances
from meloformer.benchmarks.scaling_model import (
    LinkConfig,
    RankWork,
    modelled_tokens_per_second,
    predict,
    predicted_table,
)
from meloformer.benchmarks.scaling_runs import (
    RunSettings,
    check_counts,
    measure_ranks,
    measured_table,
    rank_counts,
)
from meloformer.command_line import check_above_zero, check_at_least, check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.training.cards import find_card
from meloformer.training.config import ModelSize, OnOff, newest_shards
from meloformer.training.ds_config import find_ds_config, load_ds_config
from meloformer.training.outlook import EXPECTED_MFU

LAUNCH = Path(__file__).resolve().parents[1]
# What is measured where nothing is said: rows that a CPU bears.
_UNGIVEN: dict[str, dict[str, Any]] = {
    "cuda": {"model_size": "small", "max_seq_len": 8192, "steps": 40},
    "cpu": {
        "model_size": "tiny",
        "max_seq_len": 256,
        "steps": 6,
        "batch_size": 1,
        "accumulation": 2,
    },
}
_CPU_RANKS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class BenchScalingConfig:
    """Flags of launch/bench/scaling.py."""

    measure: OnOff = "on"
    """Train on ranks of this host."""
    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given."""
    ranks: tuple[int, ...] = ()
    """Numbers of ranks to measure; 1, 2, 4 .. all GPUs if not given, 1 and 2 on a CPU."""
    model_size: ModelSize | None = None
    """To measure; small on CUDA and tiny elsewhere if not given."""
    max_seq_len: int | None = None
    """Tokens of a row to measure; 8192 on CUDA and 256 elsewhere if not given."""
    steps: int | None = None
    """Steps of a measured run, of which the second half counts."""
    config: Path = Path("ds_configs/zero2.json")
    """Partitioning to measure."""
    device: DeviceName = "auto"
    """Where to measure."""
    gpus: tuple[int, ...] = (8, 16, 32, 64)
    """Numbers of GPUs to predict."""
    sizes: tuple[ModelSize, ...] = ("small", "base", "large")
    """Models to predict."""
    configs: tuple[Path, ...] = tuple(Path(f"ds_configs/zero{stage}.json") for stage in (1, 2, 3))
    """Partitionings to predict."""
    seq_len: int = 8192
    """Tokens of a row to predict."""
    batch_size: int = 6
    """Rows per rank and micro-step, predicted, and measured on CUDA; a CPU measures 1."""
    gradient_accumulation_steps: int = 8
    """Micro-steps of an optimizer step, likewise; a CPU measures 2."""
    card: str = "H200"
    """GPU to predict; launch/tools/check_gpu.py lists them."""
    mfu: float = EXPECTED_MFU
    """Share of its peak that a GPU reaches alone."""
    tokens_per_second: float | None = None
    """Of one GPU alone, measured; replaces --card and --mfu."""
    links: LinkConfig = field(default_factory=LinkConfig)
    """Between the GPUs."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        lowest = {"batch_size": 1, "gradient_accumulation_steps": 1, "seq_len": 16}
        lowest |= {"max_seq_len": 16, "steps": 2}
        check_at_least(self, lowest)
        for gpus in self.gpus:
            if gpus < 1:
                raise ConfigError(f"--gpus {gpus}: allowed: 1 or more")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu}: allowed: above 0 up to 1")
        check_above_zero(self, "tokens_per_second")


def bench_scaling(config: BenchScalingConfig) -> None:
    console = table_console()
    device = torch.device(choose_device(config.device))
    figures: dict[str, Any] = circumstances(device, LAUNCH.parent)
    if config.measure == "on":
        settings, counts = settle_runs(config, device.type)
        figures["measured"] = measure_ranks(settings, counts)
        console.print(measured_table(settings, figures["measured"]))
        if device.type != "cuda":
            console.print(f"All ranks share {os.cpu_count()} CPU cores: no figure of speed.")
    rows = find_rows(config.data, "packed", config.seq_len, 1)
    figures["modelled"] = [
        predict(work, load_ds_config(path), gpus, config.links)
        for work in workloads(config, rows)
        for path in config.configs
        for gpus in config.gpus
    ]
    console.print(predicted_table(figures["modelled"]))
    console.print(basis(config, rows), highlight=False)
    if config.json:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


def settle_runs(config: BenchScalingConfig, device: str) -> tuple[RunSettings, tuple[int, ...]]:
    """What is started to be measured, and on how many ranks."""
    ungiven = _UNGIVEN["cuda" if device == "cuda" else "cpu"]
    num_devices = torch.cuda.device_count() if device == "cuda" else 0
    counts = config.ranks or (rank_counts(num_devices) if device == "cuda" else _CPU_RANKS)
    check_counts(counts, num_devices, device)
    settings = RunSettings(
        recipe=LAUNCH / "train.py",
        data=config.data or str(newest_shards()),
        size=config.model_size or ungiven["model_size"],
        max_seq_len=config.max_seq_len or ungiven["max_seq_len"],
        batch_size=ungiven.get("batch_size", config.batch_size),
        accumulation=ungiven.get("accumulation", config.gradient_accumulation_steps),
        config=find_ds_config(config.config),
        device=device,
        num_steps=config.steps or ungiven["steps"],
    )
    return settings, counts


def workloads(config: BenchScalingConfig, rows: BenchRows) -> list[RankWork]:
    """The sizes to predict, each at its speed on one GPU."""
    works = []
    for size in config.sizes:
        model = sized_config(size, config.seq_len)
        speed = config.tokens_per_second or modelled_tokens_per_second(
            model, rows, find_card(config.card), config.mfu
        )
        works.append(
            RankWork(
                size=size,
                config=model,
                tokens=config.batch_size * config.seq_len,
                accumulation=config.gradient_accumulation_steps,
                tokens_per_second=speed,
            )
        )
    return works


def basis(config: BenchScalingConfig, rows: BenchRows) -> str:
    """What the predictions rest on."""
    speed = f"{config.mfu:.0%} of the peak of a {config.card} (rows: {rows.source})"
    if config.tokens_per_second:
        speed = f"{config.tokens_per_second:,.0f} tokens/s and GPU as given"
    links = config.links
    return (
        f"Modelled: {config.batch_size} rows of {config.seq_len} tokens x "
        f"{config.gradient_accumulation_steps} micro-steps a rank, bf16, {speed}; "
        f"{links.node_gb_s:g} GB/s a GPU in nodes of {links.gpus_per_node}, "
        f"{links.network_gb_s:g} GB/s a node between them; sent = received; nothing overlapped, as "
        "the engine runs, and `if hidden` where all of it could run beside the computation. A GPU "
        "that reaches less alone spends a smaller share on the exchange."
    )


if __name__ == "__main__":
    run_recipe(bench_scaling, BenchScalingConfig)
