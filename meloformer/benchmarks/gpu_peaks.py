"""Peak memory of the runs of a GPU report, by formula."""

from collections.abc import Mapping
from typing import Any

from meloformer.benchmarks.bench_models import engine_settings, sized_config
from meloformer.model.memory import BatchSize
from meloformer.training.memory import Partitioning, forecast


def predicted_peak(run: Mapping[str, Any]) -> int:
    """Bytes that a training run on one GPU should take at its peak.

    Args:
        run: as `run_figures` returns it.
    """
    config = sized_config(run["model_size"], run["max_seq_len"])
    ds_config = engine_settings("cuda", batch_size=run["batch_size"])
    size = BatchSize.of(run["batch_size"], run["max_seq_len"])
    return forecast(config, size, Partitioning.of(ds_config, world_size=1)).peak
