"""Peak memory of a training step with attention in bf16 and in fp32, predicted beside measured.

python -m meloformer.benchmarks.precision_memory --model_size base --json memory.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meloformer.benchmarks.memory_trial import Trial, predicted_bytes, run_trial
from meloformer.command_line import run_recipe
from meloformer.model.config import Precision
from meloformer.model.device import DeviceName, choose_device
from meloformer.training.config import ModelSize, TrainConfig

_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class PrecisionMemoryConfig:
    """Flags of this module."""

    model_size: ModelSize = "base"
    """A preset."""
    attention: str = TrainConfig.attention
    """Attention rule."""
    max_seq_len: int = 8192
    """Tokens of a row."""
    batch_size: int = 4
    """Rows of a micro-batch."""
    device: DeviceName = "auto"
    """Where to try."""
    json: Path
    """File for the figures."""


def main(config: PrecisionMemoryConfig) -> None:
    found: list[dict[str, Any]] = []
    for precision in _PRECISIONS:
        trial = Trial(
            model_size=config.model_size,
            attention=config.attention,
            attention_precision=precision,
            checkpointing="none",
            rows=config.batch_size,
            tokens=config.max_seq_len,
            device=choose_device(config.device),
        )
        outcome = run_trial(trial)
        row: dict[str, Any] = {
            "attention_precision": precision,
            "peak_predicted": predicted_bytes(trial),
        }
        row |= {"peak_measured": outcome.peak_bytes if outcome.fits else None}
        facts = ("model_size", "max_seq_len", "batch_size")
        found.append({name: getattr(config, name) for name in facts} | row)
        # After each: what was found stands, also where the next one finds no time.
        config.json.write_text(json.dumps({"precision_memory": found}, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(main, PrecisionMemoryConfig)
