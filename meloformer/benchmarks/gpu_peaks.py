"""Peak memory of the runs of a GPU report, by formula."""

from collections.abc import Mapping
from typing import Any, get_args

from meloformer.benchmarks.bench_models import engine_settings, sized_config
from meloformer.model.config import Checkpointing
from meloformer.model.memory import BatchSize
from meloformer.training.config import TrainConfig
from meloformer.training.memory import Partitioning, forecast


def predicted_peak(run: Mapping[str, Any]) -> int:
    """Bytes that a training run on one GPU should take at its peak.

    Args:
        run: as `run_figures` returns it.
    """
    config = sized_config(run["model_size"], run["max_seq_len"])
    ds_config = engine_settings("cuda", batch_size=run["batch_size"])
    size = BatchSize.of(
        run["batch_size"],
        run["max_seq_len"],
        checkpointing=run.get("checkpointing", "none"),
        attention_bytes=4 if run.get("attention_dtype") == "float32" else None,
    )
    return forecast(config, size, Partitioning.of(ds_config, world_size=1)).peak


def least_checkpointing(model_size: str, tokens: int, memory_bytes: float) -> Checkpointing:
    """What has to be computed again for a row to train on a GPU; all of it where nothing helps.

    Args:
        model_size: a preset.
        tokens: of the row.
        memory_bytes: of the device.
    """
    run = {"model_size": model_size, "max_seq_len": tokens, "batch_size": 1}
    for checkpointing in get_args(Checkpointing):
        peak = predicted_peak(run | {"checkpointing": checkpointing})
        if peak <= TrainConfig.memory_headroom * memory_bytes:
            break
    return checkpointing
