"""What is left to choose by numbers on a device: blocks, heads, orders, fusing, kernels, tiles.

python -m meloformer.benchmarks.choices --data data_shards/<name> --json choices.json

Every question has its candidates, the first of them what training takes today; they run the whole
model forward and backward in turns. A candidate that computes the same function as the first one
is held against it: both are compared with a model of higher precision, and one that is further off
than the first by more than its rounding is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from meloformer.benchmarks import liger_kernels
from meloformer.benchmarks.attention_bench import in_order
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.bench_rows import find_rows
from meloformer.benchmarks.choice_trials import Choice, Conditions, measure_choices, pin_of
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.config import MuseFormerConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.kernel_options import Options
from meloformer.model.kernel_trials import flash_is_right, tune_tiles
from meloformer.model.masks import rule_of
from meloformer.model.rules import load_rule
from meloformer.training.config import ModelSize, TrainConfig, fuses
from meloformer.training.prepare import backend_of


@dataclass(frozen=True, kw_only=True)
class ChoicesConfig:
    """Flags of this module."""

    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given, made up pieces if that is empty."""
    model_size: ModelSize = "large"
    """A preset."""
    max_seq_len: int = 8192
    """Tokens of a row."""
    batch_size: int = 1
    """Rows of a call."""
    attention: str = TrainConfig.attention
    """Attention rule."""
    head_widths: tuple[int, ...] = (64, 128)
    """Widths of a head to try."""
    rounds: int = 5
    """Timed calls of each candidate, in turns."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path
    """File for the figures, written anew after each question."""


def find_choices(
    config: MuseFormerConfig, heads: Mapping[str, MuseFormerConfig | str], device: torch.device
) -> list[Choice]:
    """All candidates, those of one question in a row, what training takes today first.

    Args:
        config: the model that training takes.
        heads: the same with other heads, by name; text says why there is none.
        device: where they run.
    """
    is_fused = fuses(TrainConfig.fuse, backend_of(device), zero_stage=0)
    ours = Choice(question="", name="ours", config=config, fuse=is_fused)
    hid = replace(config, rule="hid")

    def of(question: str, name: str, **changes: Any) -> Choice:
        return replace(ours, question=question, name=name, **changes)

    return [
        of("blocks", "128"),
        of("blocks", "64", block_size=64),
        *(
            of("heads", name, is_judged=False, refusal=found)
            if isinstance(found, str)
            else of("heads", name, is_judged=False, config=found)
            for name, found in heads.items()
        ),
        of("storage of hid", "by instrument", config=hid),
        of(
            "storage of hid",
            "by bar",
            config=replace(hid, rule=in_order(rule_of("hid"), "bar")),
        ),
        of("pointwise parts", "fused" if is_fused else "plain"),
        of("pointwise parts", "plain" if is_fused else "fused", fuse=not is_fused),
        of("kernels", "ours"),
        of("kernels", "Liger RMSNorm", adapt=liger_kernels.take_norms),
        of("kernels", "Liger SwiGLU", adapt=liger_kernels.take_swiglu),
        of("kernels", "Liger cross-entropy", loss=liger_kernels.cross_entropy),
        of("tiles", "torch's", options={}),
        of("tiles", "tuned", find_options=lambda: _tuned(config, device)),
        of("backend", "Triton", options={}),
        of("backend", "FLASH", find_options=lambda: _flash(config, device)),
    ]


def _tuned(config: MuseFormerConfig, device: torch.device) -> Options:
    """Tiles for the call that takes longest."""
    rule = rule_of(config.rule)
    rows = find_rows(None, "one_piece", config.max_seq_len, num_rows=1)
    batch = rows.batch(rule).to(device)
    mask: Any = build_plan(batch.layout, rule, "flex", batch.blocks).update[-1].mask
    share = rule[-1].share / sum(group.share for group in rule)
    return tune_tiles(
        mask,
        num_heads=round(config.num_heads * share),
        num_kv_heads=round(config.num_kv_heads * share),
        head_width=config.head_width,
        dtype=torch.bfloat16,
    )


def _flash(config: MuseFormerConfig, device: torch.device) -> Options:
    if not flash_is_right(device, head_width=config.head_width):
        raise ConfigError(
            "FLASH is not installed, not for this device, or its gradients are wrong; allowed: "
            "what passes kernel_trials.flash_is_right"
        )
    return {"BACKEND": "FLASH"}


def main(config: ChoicesConfig) -> None:
    device = torch.device(choose_device(config.device))
    rule = load_rule(config.attention)
    model = replace(sized_config(config.model_size, config.max_seq_len), rule=rule)
    heads: dict[str, MuseFormerConfig | str] = {f"{model.head_width} wide": model}
    for width in config.head_widths:
        try:
            other = sized_config(config.model_size, config.max_seq_len, width)
            heads.setdefault(f"{width} wide", replace(other, rule=rule))
        except ConfigError as error:
            heads[f"{width} wide"] = str(error)
    conditions = Conditions(
        rows=find_rows(config.data, "packed", config.max_seq_len, config.batch_size),
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        rounds=config.rounds,
    )
    found: dict[str, Any] = {"choices": []}
    for rows in measure_choices(find_choices(model, heads, device), conditions):
        found["choices"] += rows
        for row in rows:
            if row["question"] == "tiles" and row.get("options"):
                pin = pin_of(model, device, conditions.dtype)
                found["tiles_to_pin"] = f"{pin}: {row['options']}"
        config.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(main, ChoicesConfig)
