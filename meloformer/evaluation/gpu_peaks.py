"""Peak memory of the runs of a GPU report, by formula."""

from collections.abc import Mapping
from typing import Any

from meloformer.evaluation.bench_models import sized_config
from meloformer.model.counts import num_parameters
from meloformer.model.memory import BatchSize, peak_bytes

# bf16 weights, fp32 gradients, fp32 master weights and two moments.
_STATE_BYTES = 2 + 4 + 12


def predicted_peaks(found: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that each training run should take at its peak, by model size.

    Args:
        found: as `run_report` returns it.
    """
    peaks = {}
    for run in found["train"]:
        config = sized_config(run["model_size"], run["max_seq_len"])
        size = BatchSize.of(run["batch_size"], run["max_seq_len"])
        state = _STATE_BYTES * num_parameters(config)
        peaks[run["model_size"]] = state + peak_bytes(config, size)
    return peaks
