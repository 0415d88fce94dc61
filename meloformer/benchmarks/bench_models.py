"""What a bench measures is what training runs: the same models, built in the same way."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from meloformer.errors import ConfigError
from meloformer.midi import grid
from meloformer.model.attention import Backend
from meloformer.model.config import SIZES, Checkpointing, MuseFormerConfig
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import VOCAB_SIZE
from meloformer.training.config import TrainConfig
from meloformer.training.ds_config import (
    DEFAULT_DS_CONFIG,
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.graphs import Shapes
from meloformer.training.optimizer import OptimizerConfig


def sized_config(size: str, max_seq_len: int, head_width: int | None = None) -> MuseFormerConfig:
    """Settings of a size under the default rule.

    Args:
        size: a key of SIZES.
        max_seq_len: longest row, in tokens.
        head_width: K; that of the size if not given. The width and the query heads per key/value
            head stay.

    Raises:
        ConfigError: the size cannot have such heads.
    """
    config = MuseFormerConfig(
        **asdict(SIZES[size]),
        vocab_size=VOCAB_SIZE,
        num_onsets=grid.MAX_BAR_STEPS,
        num_instruments=grid.NUM_INSTRUMENTS,
        max_seq_len=max_seq_len,
        open_summary_rate=TrainConfig.open_summary_rate,
    )
    if head_width is None:
        return config
    num_heads, rest = divmod(config.width, max(head_width, 1))
    num_kv_heads, rest_kv = divmod(num_heads * config.num_kv_heads, config.num_heads)
    if head_width < 1 or rest or rest_kv or not num_kv_heads:
        raise ConfigError(
            f"--head_width {head_width}: allowed for {size} (width {config.width}): a divisor that "
            "leaves whole key/value heads"
        )
    return replace(config, num_heads=num_heads, num_kv_heads=num_kv_heads)


def build_model(
    config: MuseFormerConfig,
    *,
    fuse: bool,
    checkpointing: Checkpointing = "none",
    seed: int = 0,
) -> MuseFormer:
    """A model on the CPU in fp32, as a run builds it.

    Args:
        config: its settings; a twin without summaries is built like the others, or the comparison
            would not be fair.
        fuse: compile its pointwise parts, what `training.config.fuses` says.
        checkpointing: what the backward pass computes again.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    return MuseFormer(config, checkpointing=checkpointing, fuse=fuse)


def num_graphs(config: MuseFormerConfig, shapes: Shapes, backend: Backend, *, fuse: bool) -> int:
    """Graphs that a model may compile in a bench.

    Args:
        config: of the model; without summaries it is the dense twin, whose attention is a kernel
            of torch's and is not compiled.
        shapes: of its batches.
        backend: of attention.
        fuse: whether its pointwise parts are compiled.
    """
    is_compiled = backend == "flex" and config.summaries
    rule = rule_of(config.rule) if is_compiled else ()
    return shapes.num_graphs(
        rule, summaries=is_compiled, opened=config.num_open_layers > 0, fuse=fuse
    )


def open_rate(config: MuseFormerConfig) -> float:
    """Share of the rows that a run gives open summaries; 0 for a model that cannot have any."""
    return config.open_summary_rate if config.num_open_layers else 0.0


def engine_settings(
    device_type: str,
    *,
    batch_size: int,
    accumulation: int = 1,
    world_size: int = 1,
    source: Path = DEFAULT_DS_CONFIG,
) -> dict[str, Any]:
    """Partitioning as a run with default flags would resolve it.

    Args:
        device_type: where the run computes.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step.
        world_size: number of ranks.
        source: ds_configs file.

    Raises:
        ConfigError: the file is refused.
    """
    facts = RunFacts(
        micro_batch_rows=batch_size,
        accumulation=accumulation,
        world_size=world_size,
        gradient_clipping=OptimizerConfig().gradient_clipping,
        device=device_type,
    )
    return resolve_ds_config(load_ds_config(source), facts, source=str(source))
