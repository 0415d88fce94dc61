"""The longest row that trains within some memory: by formula, and by trying."""

from dataclasses import dataclass

from meloformer.batches.plan import PlanConfig
from meloformer.benchmarks.memory_trial import Trial, longest_that_fits, model_of, run_trial
from meloformer.errors import ConfigError
from meloformer.model.config import Checkpointing, Precision
from meloformer.model.memory import BatchSize
from meloformer.training.config import ModelSize
from meloformer.training.memory import Partitioning, forecast, longest_row


@dataclass(frozen=True, kw_only=True)
class LongestRowConfig:
    """What to train."""

    model_size: ModelSize = "small"
    """A preset."""
    attention: str = "halves"
    """Attention rule."""
    attention_precision: Precision = "bf16"
    """Dtype of the attention call; auto is predicted as bf16."""
    checkpointing: Checkpointing = "none"
    """What the backward pass computes again."""
    rows: int = 1
    """Rows of a micro-batch."""
    most_tokens: int = 262144
    """Longest row to try."""

    def __post_init__(self) -> None:
        for name, allowed in (("rows", 1), ("most_tokens", PlanConfig().bucket_multiple)):
            if getattr(self, name) < allowed:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: {allowed} or more")


@dataclass(frozen=True, kw_only=True)
class LongestRow:
    """What was found.

    Args:
        limit_bytes: memory to stay within.
        modelled_for: "cuda" or "cpu".
        predicted_tokens: longest row by formula.
        measured_tokens: longest row that trained; None where nothing was tried.
        num_tries: real steps that were tried.
        predicted_bytes: peak at the measured length by formula.
        peak_bytes: peak there; 0 where nothing was tried or nothing fits.
    """

    limit_bytes: int
    modelled_for: str
    predicted_tokens: int
    measured_tokens: int | None = None
    num_tries: int = 0
    predicted_bytes: int = 0
    peak_bytes: int = 0


def find_longest_row(
    config: LongestRowConfig, device: str, limit_bytes: int, *, is_tried: bool
) -> LongestRow:
    """Predict the longest row, and bisect by trying.

    Args:
        config: what to train.
        device: "cuda", or "cpu", where trials run under the limit.
        limit_bytes: memory to stay within.
        is_tried: bisect; the formula alone is for CUDA.
    """
    modelled_for = device if is_tried else "cuda"
    model = model_of(config.model_size, config.attention, config.most_tokens)
    partitioning = Partitioning(is_bf16=modelled_for == "cuda")
    how = {
        "attention_bytes": 4 if config.attention_precision == "fp32" else None,
        "checkpointing": config.checkpointing,
    }
    step = PlanConfig().bucket_multiple
    size = BatchSize.of(config.rows, step, **how)
    predicted = longest_row(model, size, partitioning, limit_bytes, modelled_for)
    if not is_tried:
        return LongestRow(
            limit_bytes=limit_bytes, modelled_for=modelled_for, predicted_tokens=predicted
        )
    peaks: dict[int, int] = {}

    def fits(tokens: int) -> bool:
        outcome = run_trial(
            Trial(
                model_size=config.model_size,
                attention=config.attention,
                attention_precision=config.attention_precision,
                checkpointing=config.checkpointing,
                rows=config.rows,
                tokens=tokens,
                device=device,
                limit_bytes=limit_bytes if device == "cpu" else 0,
            )
        )
        peaks[tokens] = outcome.peak_bytes
        return outcome.fits and (device == "cpu" or outcome.peak_bytes <= limit_bytes)

    found = longest_that_fits(fits, step, predicted, config.most_tokens)
    at_found = BatchSize.of(config.rows, max(found, step), **how)
    return LongestRow(
        limit_bytes=limit_bytes,
        modelled_for=modelled_for,
        predicted_tokens=predicted,
        measured_tokens=found,
        num_tries=len(peaks),
        predicted_bytes=forecast(model, at_found, partitioning, modelled_for).peak,
        peak_bytes=peaks.get(found, 0),
    )
