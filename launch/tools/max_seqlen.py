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

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.evaluation.longest_row import LongestRow, LongestRowConfig, find_longest_row
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


def max_seqlen(config: MaxSeqlenConfig) -> None:
    device = choose_device(config.device)
    if config.memory_gib is None and device != "cuda":
        raise ConfigError(
            "--memory_gib was not given and there is no CUDA device; allowed: GiB of a card, such "
            "as 80 (formula alone), or a limit to try under with --try_here"
        )
    limit = int((config.memory_gib or 0) * BYTES_PER_GIB)
    if device == "cuda":
        limit = limit or int(torch.cuda.mem_get_info()[1])
    found = find_longest_row(config, device, limit, is_tried=device == "cuda" or config.try_here)
    if config.json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return
    Console().print(describe(config, found), soft_wrap=True)


def describe(config: MaxSeqlenConfig, found: LongestRow) -> str:
    words = (
        f"{config.model_size}, {config.attention}, {config.rows} rows, checkpointing "
        f"{config.checkpointing}, {found.limit_bytes / BYTES_PER_GIB:.1f} GiB: predicted "
        f"{found.predicted_tokens:,} tokens (modelled, {found.modelled_for})"
    )
    if found.measured_tokens is None:
        return words + "; nothing was tried"
    words += f"; measured {found.measured_tokens:,} tokens in {found.num_tries} tries"
    if found.peak_bytes:
        predicted, measured = (
            found.predicted_bytes / BYTES_PER_GIB,
            found.peak_bytes / BYTES_PER_GIB,
        )
        words += f", peak there predicted {predicted:.2f} GiB, measured {measured:.2f} GiB"
    return words


if __name__ == "__main__":
    run_recipe(max_seqlen, MaxSeqlenConfig)
