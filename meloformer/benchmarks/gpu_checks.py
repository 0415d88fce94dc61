"""Is sparse attention right on this device: gradients against float64, and the choice of dtype.

python -m meloformer.benchmarks.gpu_checks --check gradients --json gradients.json
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.bench_models import build_model, num_graphs, open_rate, sized_config
from meloformer.benchmarks.bench_rows import BenchRows, find_rows
from meloformer.command_line import run_recipe
from meloformer.model.attention import AttentionPlan, build_plan
from meloformer.model.config import MuseFormerConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.injection import INJECTION_LAYER, NoisedOwn
from meloformer.model.masks import RULES, Rule, num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import choose_precision
from meloformer.training.config import fuses
from meloformer.training.graphs import Shapes, limit_graphs
from meloformer.training.loss import step_loss
from meloformer.training.prepare import backend_of

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class GpuChecksConfig:
    """Flags of this module."""

    check: Literal["gradients", "precision"] = "gradients"
    """What is checked."""
    rules: tuple[str, ...] = tuple(RULES)
    """Preset rules."""
    length: int = 1024
    """Tokens of a row; there are two."""
    num_layers: int = INJECTION_LAYER + 2
    """Depth; widths are those of small. Two layers have open summaries."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path
    """File for the figures."""


def main(config: GpuChecksConfig) -> None:
    device = torch.device(choose_device(config.device))
    if config.check == "precision":
        choice = choose_precision("auto", device)
        found: dict[str, Any] = {"precision": choice.to_json()}
    else:
        rows = find_rows(None, "one_piece", config.length, num_rows=2)
        found = check_gradients(config.rules, rows, config.num_layers, device)
    config.json.write_text(json.dumps(found, indent=2) + "\n")


def check_gradients(
    rules: tuple[str, ...], rows: BenchRows, num_layers: int, device: torch.device
) -> dict[str, Any]:
    """Worst relative error of losses and gradients in each dtype, in per cent, and by rule.

    Args:
        rules: presets.
        rows: what the model reads.
        num_layers: its depth.
        device: where the kernel runs; on a CPU, which has no backward of it, dense masks run.
    """
    backend, T = backend_of(device), rows.seq_len
    shapes = Shapes(train=(BatchShape(len(rows.rows), T, num_summaries(T)),), score=())
    allowed = len(_DTYPES) * sum(
        num_graphs(_config(RULES[name], rows, num_layers), shapes, backend, fuse=_is_fused(device))
        for name in rules
    )
    if allowed:
        limit_graphs(allowed)
    errors = {
        name: {
            dtype_name: gradient_error(RULES[name], rows, num_layers, device, dtype)
            for dtype_name, dtype in _DTYPES.items()
        }
        for name in rules
    }
    worst = {
        f"gradients_{dtype}": 100 * max(of_rule[dtype] for of_rule in errors.values())
        for dtype in _DTYPES
    }
    return worst | {"gradient_errors": errors}


def gradient_error(
    rule: Rule, rows: BenchRows, num_layers: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Largest relative error of the loss and of any weight's gradient, as norms.

    The judge is dense attention in float64 with the same weights, and nothing compiled.
    """
    backend, config = backend_of(device), _config(rule, rows, num_layers)
    batch = rows.batch(rule if backend == "flex" else None, open_rate=open_rate(config))
    batch = batch.to(device)
    model = build_model(config, fuse=_is_fused(device)).to(device, dtype)
    judge = MuseFormer(config).to(device)
    judge.load_state_dict(model.state_dict())

    def gradients(model: MuseFormer, plan: AttentionPlan) -> list[Tensor]:
        start = NoisedOwn.of(batch.open_seeds)
        logits_BTV = model(batch.ids_BT, batch.layout, plan, start)
        # In the model's own precision: the loss is no part of what is judged.
        is_fused = model is not judge and _is_fused(device)
        loss = step_loss(logits_BTV, batch.targets_BT, batch.num_targets, 1, fuse=is_fused)
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]  # type: ignore[list-item]

    found = gradients(model, build_plan(batch.layout, rule, backend, batch.blocks))
    expected = gradients(judge.double(), build_plan(batch.layout, rule))
    ratios = [
        float((a.double() - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny))
        for a, b in zip(found, expected, strict=True)
    ]
    # `max` passes over what is no number.
    return max(ratio if ratio == ratio else float("inf") for ratio in ratios)


def _config(rule: Rule, rows: BenchRows, num_layers: int) -> MuseFormerConfig:
    return replace(sized_config("small", rows.seq_len), num_layers=num_layers, rule=rule)


def _is_fused(device: torch.device) -> bool:
    return fuses("auto", backend_of(device), zero_stage=0)


if __name__ == "__main__":
    run_recipe(main, GpuChecksConfig)
