"""The longest row that trains: forward, backward and update, on the device in hand.

    python launch/tools/max_seqlen.py                                     # by trying, on a GPU
    python launch/tools/max_seqlen.py --model_size base --checkpointing layer
    python launch/tools/max_seqlen.py --device cpu --memory_gib 80        # by formula, for a GPU
    python launch/tools/max_seqlen.py --device cpu --memory_gib 1 --model_size tiny --try_here

Each try is a process of its own, so that one that runs out of memory ends alone. On a CPU
--try_here does real steps under a limit of --memory_gib on top of what the libraries take; there
attention is dense, which needs memory that grows with the square of the length.
"""

import json
import sys
from dataclasses import asdict, dataclass

import torch
from rich.console import Console

from meloformer.batches.plan import PlanConfig
from meloformer.benchmarks.longest_row import LongestRow, LongestRowConfig, find_longest_row
from meloformer.command_line import check_above_zero, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.training.metrics import BYTES_PER_GIB


@dataclass(frozen=True, kw_only=True)
class MaxSeqlenConfig(LongestRowConfig):
    """Flags of launch/tools/max_seqlen.py."""

    device: DeviceName = "auto"
    """Where to try."""
    memory_gib: float | None = None
    """Memory to stay within; that of the GPU in hand if not given."""
    try_here: bool = False
    """On a CPU: real steps under the limit instead of the formula for a GPU."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "memory_gib")


def max_seqlen(config: MaxSeqlenConfig) -> None:
    device = choose_device(config.device)
    if config.memory_gib is None and device != "cuda":
        raise ConfigError(
            "--memory_gib was not given and there is no CUDA device; allowed: GiB of a card, such "
            "as 80 (formula alone), or a limit to try under with --try_here"
        )
    if config.try_here and device not in ("cuda", "cpu"):
        raise ConfigError(f"--try_here: found --device {device}; allowed: cuda, cpu")
    limit = int((config.memory_gib or 0) * BYTES_PER_GIB)
    if device == "cuda":
        # Not mem_get_info: that would open a context here, which takes memory from the tries.
        limit = limit or torch.cuda.get_device_properties(0).total_memory
    found = find_longest_row(config, device, limit, is_tried=device == "cuda" or config.try_here)
    if config.json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return
    Console().print(describe(config, found), soft_wrap=True)


def describe(config: MaxSeqlenConfig, found: LongestRow) -> str:
    words = (
        f"{config.model_size}, {config.attention}, rows at a time {config.rows}, checkpointing "
        f"{config.checkpointing}, {found.limit_bytes / BYTES_PER_GIB:.2f} GiB: predicted "
        f"{found.predicted_tokens:,} tokens (modelled, {found.modelled_for})"
    )
    if found.measured_tokens is None:
        return words + "; nothing was tried"
    if not found.measured_tokens:
        return words + "; measured: not even the shortest row fits"
    words += f"; measured {found.measured_tokens:,} tokens"
    if found.measured_tokens + PlanConfig().bucket_multiple > config.most_tokens:
        words += " or more (--most_tokens)"
    words += f", tries {found.num_tries}"
    if found.peak_bytes:
        predicted, measured = (
            found.predicted_bytes / BYTES_PER_GIB,
            found.peak_bytes / BYTES_PER_GIB,
        )
        words += f", peak there predicted {predicted:.2f} GiB, measured {measured:.2f} GiB"
    return words


if __name__ == "__main__":
    run_recipe(max_seqlen, MaxSeqlenConfig)
