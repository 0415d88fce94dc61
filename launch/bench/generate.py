"""How fast pieces are written, beside the matrix products of the same steps and nothing else.

    python launch/bench/generate.py --checkpoint runs/<name>
    python launch/bench/generate.py --model_size small --batch_sizes 1 64 --json generate.json
    python launch/bench/generate.py --model_size tiny --bars 4 --max_tokens 200 --rounds 3

All run in turns on the same weights and shapes. A piece that reaches --max_tokens is cut short;
without a checkpoint the weights are random, and pieces are as long as they may be. The columns:
tokens and notes of all pieces by the median of the timed calls, the way from the fastest to the
slowest call as a share of it, and, for as many tokens, the time by that of the products of the
saved weights in the same round. On a CPU weights of int8 take part; they write other pieces. With
--compile generation through compiled graphs takes part; they are made before the clock runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from meloformer.benchmarks.bench_models import build_model, sized_config
from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.circumstances import circumstances
from meloformer.benchmarks.generate_bench import GenerateBench, claimed, generate_table, measure
from meloformer.bridge.base_folder import find_base
from meloformer.command_line import check_at_least, check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.generation.controls import ControlConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import load_model
from meloformer.training.config import ModelSize

ROOT = Path(__file__).resolve().parents[2]
RANDOM_NOTES_PER_BAR = "40-"


@dataclass(frozen=True, kw_only=True)
class BenchGenerateConfig:
    """Flags of launch/bench/generate.py."""

    checkpoint: Path | None = None
    """Run, step or model folder; random weights of a size if not given."""
    model_size: ModelSize | None = None
    """Of random weights; small if neither is given."""
    bars: int = 16
    """Of each piece."""
    max_tokens: int = 2000
    """Of a piece, after which all are cut short."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Pieces at once; each is measured."""
    rounds: int = 5
    """Timed calls of each candidate."""
    device: DeviceName = "auto"
    """Where to compute."""
    compile: bool = False
    """Time compiled generation too."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        check_at_least(self, {"bars": 1, "max_tokens": 1, "rounds": 1})
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            sizes = " ".join(map(str, self.batch_sizes))
            raise ConfigError(f"--batch_sizes {sizes}: allowed 1 or more each")
        if self.checkpoint is not None and self.model_size is not None:
            raise ConfigError(
                f"--checkpoint {self.checkpoint} with --model_size {self.model_size}: allowed: one "
                "of them; a checkpoint has its own size"
            )


def bench_generate(config: BenchGenerateConfig) -> None:
    kind = choose_device(config.device)
    if config.checkpoint is not None:
        name = str(config.checkpoint)
        model = load_model(find_base(config.checkpoint, "raw"), kind)
    else:
        name = config.model_size or "small"
        model = build_model(sized_config(name, 8192), fuse=False).to(kind).eval()
        name = f"{name}, random weights"
    bench = GenerateBench(
        model=model,
        # Random weights would end their bars at once; music of several instruments does not.
        controls=ControlConfig(
            bars=config.bars, notes_per_bar=None if config.checkpoint else RANDOM_NOTES_PER_BAR
        ),
        batch_sizes=config.batch_sizes,
        max_tokens=config.max_tokens,
        rounds=config.rounds,
        device=torch.device(kind),
        compiles=config.compile,
    )
    rows = measure(bench)
    title = (
        f"pieces of {config.bars} bars by {name} on {kind}, {torch.get_num_threads()} threads, "
        f"medians of {config.rounds}"
    )
    table_console().print(generate_table(title, rows))
    if config.json:
        figures = circumstances(bench.device, ROOT) | {"title": title, "rows": rows}
        figures |= claimed(rows, bench.device)
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(bench_generate, BenchGenerateConfig)
