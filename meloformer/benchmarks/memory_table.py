"""Predicted and measured memory of sizes, lengths and batches, and the cards that hold them."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from meloformer.benchmarks.memory_trial import Trial, model_of, run_trial
from meloformer.errors import ConfigError
from meloformer.model.config import Checkpointing, Precision
from meloformer.model.memory import BatchSize
from meloformer.training.cards import CARDS
from meloformer.training.config import ModelSize
from meloformer.training.memory import Partitioning, forecast, largest_batch
from meloformer.training.metrics import BYTES_PER_GIB


@dataclass(frozen=True, kw_only=True)
class MemoryTableConfig:
    """What to tabulate."""

    sizes: tuple[ModelSize, ...] = ("small", "base", "large")
    """Model sizes."""
    lengths: tuple[int, ...] = (2048, 8192, 16384, 32768, 65536)
    """Tokens of a row."""
    batches: tuple[int, ...] = (1, 6)
    """Rows of a micro-batch."""
    attention: str = "halves"
    """Attention rule."""
    attention_precision: Precision = "bf16"
    """Dtype of the attention call; auto counts as bf16."""
    checkpointing: Checkpointing = "none"
    """What the backward pass computes again."""
    stage: Literal[1, 2, 3] = 2
    """ZeRO stage."""
    ranks: int = 1
    """Ranks that share the states out."""
    memory_headroom: float = 0.9
    """Share of a card's memory that may be used."""

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ConfigError(f"--sizes: found none; allowed: {', '.join(get_args(ModelSize))}")
        for name, allowed in (("lengths", 16), ("batches", 1)):
            found = getattr(self, name)
            if not found or min(found) < allowed:
                given = " ".join(map(str, found)) or "without a number"
                raise ConfigError(f"--{name} {given}: allowed: {allowed} or more, each")
        if self.ranks < 1:
            raise ConfigError(f"--ranks {self.ranks}: allowed: 1 or more")
        if not 0 < self.memory_headroom <= 1:
            raise ConfigError(
                f"--memory_headroom {self.memory_headroom:g}: allowed: above 0, up to 1"
            )


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """A line of the table, in bytes.

    Args:
        model_size: a preset.
        tokens: of a row.
        rows: of a micro-batch.
        states: weights, gradients, optimizer state and buffers (modelled).
        activations: the most that a micro-batch adds (modelled).
        predicted: peak (modelled).
        measured: peak on the GPU in hand; None where there is none, 0 where it did not fit.
        largest_batch: most rows by card (modelled).
    """

    model_size: ModelSize
    tokens: int
    rows: int
    states: int
    activations: int
    predicted: int
    measured: int | None
    largest_batch: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data; which figures are modelled is said in it."""
        modelled = ["states", "activations", "predicted", "largest_batch"]
        return asdict(self) | {"unit": "bytes", "modelled": modelled}


def memory_rows(config: MemoryTableConfig, *, is_measured: bool) -> list[MemoryRow]:
    """Every combination of size, length and batch.

    Args:
        config: what to tabulate.
        is_measured: do real steps on the GPU in hand, one rank.
    """
    return [
        _row(config, size, tokens, rows, is_measured)
        for size in config.sizes
        for tokens in config.lengths
        for rows in config.batches
    ]


def _row(
    config: MemoryTableConfig, model_size: ModelSize, tokens: int, rows: int, is_measured: bool
) -> MemoryRow:
    model = model_of(model_size, config.attention, tokens)
    size = BatchSize.of(
        rows,
        tokens,
        attention_bytes=4 if config.attention_precision == "fp32" else None,
        checkpointing=config.checkpointing,
    )
    partitioning = Partitioning(stage=config.stage, world_size=config.ranks)
    found = forecast(model, size, partitioning)
    measured = None
    if is_measured:
        measured = run_trial(
            Trial(
                model_size=model_size,
                attention=config.attention,
                attention_precision=config.attention_precision,
                checkpointing=config.checkpointing,
                rows=rows,
                tokens=tokens,
                device="cuda",
                stage=config.stage,
            )
        ).peak_bytes
    share = config.memory_headroom * BYTES_PER_GIB
    return MemoryRow(
        model_size=model_size,
        tokens=tokens,
        rows=rows,
        states=found.states + found.buffers,
        activations=found.peak - found.states - found.buffers,
        predicted=found.peak,
        measured=measured,
        largest_batch={
            card.name: largest_batch(model, size, partitioning, card.memory_gib * share)
            for card in CARDS
        },
    )
