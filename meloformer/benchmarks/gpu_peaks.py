"""Peak memory of the runs of a GPU report, by formula."""

from collections.abc import Mapping
from typing import Any

from meloformer.benchmarks.bench_models import sized_config
from meloformer.model.memory import BatchSize
from meloformer.training.ds_config import (
    DEFAULT_DS_CONFIG,
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.memory import Partitioning, forecast
from meloformer.training.optimizer import OptimizerConfig


def predicted_peak(run: Mapping[str, Any]) -> int:
    """Bytes that a training run on one GPU should take at its peak.

    Args:
        run: as `run_figures` returns it.
    """
    config = sized_config(run["model_size"], run["max_seq_len"])
    facts = RunFacts(
        micro_batch_rows=run["batch_size"],
        accumulation=1,
        world_size=1,
        gradient_clipping=OptimizerConfig().gradient_clipping,
        device="cuda",
    )
    ds_config = resolve_ds_config(load_ds_config(DEFAULT_DS_CONFIG), facts, source="default")
    size = BatchSize.of(run["batch_size"], run["max_seq_len"])
    return forecast(config, size, Partitioning.of(ds_config, world_size=1)).peak
