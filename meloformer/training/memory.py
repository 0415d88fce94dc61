"""Memory of a rank by formula: what it holds whatever the batch, and what a batch adds.

On a GPU the sum is what torch.cuda.max_memory_allocated would say; the context of CUDA and what
the allocator cannot use come on top, which is what the headroom is for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meloformer.batches.plan import PlanConfig
from meloformer.errors import ConfigError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.counts import num_parameters
from meloformer.model.memory import (
    BatchSize,
    batch_bytes,
    dense_mask_bytes,
    kept_bytes,
    peak_bytes,
)
from meloformer.training.config import fuses
from meloformer.training.metrics import BYTES_PER_GIB

# Elements of DeepSpeed's buffer for gradients on their way, where ds_configs say nothing.
BUCKET_ELEMENTS = 500_000_000
_FP32, _BF16 = 4, 2
MAX_ROWS, _MAX_LENGTHS = 1 << 12, 1 << 14
_EXTENT = ("rows", "tokens", "summaries")


@dataclass(frozen=True, kw_only=True)
class Partitioning:
    """How weights, gradients and optimizer state are shared out.

    Args:
        stage: ZeRO stage, 1 to 3.
        world_size: number of ranks.
        is_bf16: weights in bf16 beside fp32 masters, or fp32 alone.
        is_offloaded: the optimizer works in host memory.
        bucket_elements: size of the buffer for gradients on their way.
        keeps_average: whether the run keeps a moving average of the weights.
        num_trained: parameters that are trained; all of them if None.
        num_by_muon: of them, those that Muon moves; the others are AdamW's.
        num_added: parameters of adapters, on top of the model's own.
    """

    stage: int = 2
    world_size: int = 1
    is_bf16: bool = True
    is_offloaded: bool = False
    bucket_elements: int = BUCKET_ELEMENTS
    keeps_average: bool = False
    num_trained: int | None = None
    num_by_muon: int = 0
    num_added: int = 0

    @classmethod
    def of(cls, ds_config: Mapping[str, Any], world_size: int) -> "Partitioning":
        """That of a resolved ds_config.

        Raises:
            ConfigError: a size of the buffers that is no number.
        """
        zero = ds_config["zero_optimization"]
        bucket = zero.get("reduce_bucket_size", BUCKET_ELEMENTS)
        if not isinstance(bucket, int | float):
            raise ConfigError(
                f"--config: found zero_optimization.reduce_bucket_size = {bucket!r}; allowed: a "
                "number of elements"
            )
        return cls(
            stage=zero["stage"],
            world_size=world_size,
            is_bf16=ds_config["bf16"]["enabled"],
            is_offloaded="offload_optimizer" in zero,
            bucket_elements=int(bucket),
        )

    @property
    def element_bytes(self) -> int:
        """Of a weight as the model computes with it."""
        return _BF16 if self.is_bf16 else _FP32


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes on a rank's device at the worst moment, by part.

    Args:
        weights: as the model computes with them.
        gradients: accumulated in fp32, and under stage 1 those of a micro-batch.
        optimizer: fp32 masters, the two moments of AdamW or the one of Muon, and the moving
            average where one is kept.
        buffers: gradients on their way between ranks.
        kept: activations for the backward pass, by part of the model.
        passing: what the worst moment of a micro-batch holds besides: the batch, logits, and
            gradients of activations.
        end_of_step: what reducing and updating hold besides, once the activations are gone.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    kept: Mapping[str, int]
    passing: int
    end_of_step: int

    @property
    def states(self) -> int:
        """Held whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most at once."""
        activations = sum(self.kept.values()) + self.passing
        return self.states + self.buffers + max(activations, self.end_of_step)

    def describe(self) -> str:
        """Every part in GiB, in one line."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "buffers": self.buffers,
            "activations kept": sum(self.kept.values()),
            "passing": self.passing,
        }
        said = ", ".join(f"{name} {count / BYTES_PER_GIB:.2f}" for name, count in parts.items())
        return f"{self.peak / BYTES_PER_GIB:.2f} GiB ({said})"


def forecast(
    model: MuseFormerConfig,
    size: BatchSize,
    partitioning: Partitioning,
    device_type: str = "cuda",
) -> Forecast:
    """Predict the memory of a rank.

    Args:
        model: its settings.
        size: the largest micro-batch.
        partitioning: of the states.
        device_type: off CUDA dense masks are counted too, a buffer only as far as it is filled,
            and norms keep more.
    """
    is_cuda = device_type == "cuda"
    is_compiled = size.is_compiled
    if is_compiled is None:
        is_compiled = fuses("auto", "flex" if is_cuda else "dense", partitioning.stage)
    size = replace(
        size,
        element_bytes=partitioning.element_bytes,
        is_norm_fused=is_cuda,
        is_compiled=is_compiled,
    )
    parameters = num_parameters(model) + partitioning.num_added
    ranks, stage = partitioning.world_size, partitioning.stage
    weights = parameters * partitioning.element_bytes
    if stage == 3:
        # Its own part, and beside it all of them while they are computed with: models of these
        # sizes stay below what DeepSpeed lets live at once.
        weights = weights // ranks + (weights if ranks > 1 else 0)
    # What is frozen has weights alone; its activations are counted as if it were trained.
    trained = parameters if partitioning.num_trained is None else partitioning.num_trained
    gradients = trained * _FP32 // (ranks if stage >= 2 else 1)
    if stage == 1:
        # Those of the last micro-batch stay beside what they were added to.
        gradients += trained * partitioning.element_bytes
    states = (3 + partitioning.keeps_average) * trained - partitioning.num_by_muon
    optimizer = states * _FP32 // ranks
    if partitioning.is_offloaded:
        gradients = optimizer = 0
    # Stage 1 in bf16 has no such buffer, and makes everything flat at the end of a step instead.
    is_flat = stage == 1 and partitioning.is_bf16
    elements = partitioning.bucket_elements
    elements = 0 if is_flat else elements if is_cuda else min(elements, trained)
    flat = trained * _FP32 // (1 if is_flat else ranks)
    kept = kept_bytes(model, size)
    masks = 0 if is_cuda else dense_mask_bytes(model, size)
    return Forecast(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=elements * partitioning.element_bytes,
        kept=kept,
        passing=peak_bytes(model, size) - sum(kept.values()) + masks,
        end_of_step=flat + _update_bytes(partitioning, is_cuda) + batch_bytes(model, size),
    )


def _update_bytes(partitioning: Partitioning, is_cuda: bool) -> int:
    """What Muon holds besides, of all matrices at once; AdamW works in place.

    The update and its direction in fp32 of a rank's part; in the precision of the products that
    part, and the parts of all ranks.
    """
    ranks, element = partitioning.world_size, _BF16 if is_cuda else _FP32
    own = 2 * _FP32 + (element if is_cuda else 0)
    return partitioning.num_by_muon * own // ranks + (
        partitioning.num_by_muon * element if ranks > 1 else 0
    )


def largest_batch(
    model: MuseFormerConfig, size: BatchSize, partitioning: Partitioning, memory_bytes: float
) -> int:
    """Most rows of a micro-batch that fit on CUDA by formula, up to MAX_ROWS; 0 where none do.

    Args:
        model: its settings.
        size: all but the rows.
        partitioning: of the states.
        memory_bytes: what may be used, headroom already taken off.
    """
    return _last_that_fits(
        lambda rows: forecast(model, replace(size, rows=rows), partitioning).peak <= memory_bytes,
        MAX_ROWS,
    )


def longest_row(
    model: MuseFormerConfig,
    size: BatchSize,
    partitioning: Partitioning,
    memory_bytes: float,
    device_type: str = "cuda",
) -> int:
    """Most tokens of a row that fit by formula, a multiple of the bucket; 0 where none do.

    Args:
        model: its settings.
        size: all but tokens and summaries.
        partitioning: of the states.
        memory_bytes: what may be used, headroom already taken off.
        device_type: see `forecast`.
    """
    step = PlanConfig().bucket_multiple

    def fits(count: int) -> bool:
        how = {name: value for name, value in vars(size).items() if name not in _EXTENT}
        longer = BatchSize.of(size.rows, count * step, **how)
        return forecast(model, longer, partitioning, device_type).peak <= memory_bytes

    return step * _last_that_fits(fits, _MAX_LENGTHS)


def _last_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Largest number up to `most` for which a falling claim holds; 0 where it never does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
