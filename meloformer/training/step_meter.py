"""From what the ranks counted and timed in a step to what the run says about it."""

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import TypedDict

from meloformer.batches.batch import Batch
from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import rule_of
from meloformer.training.cards import peak_flops
from meloformer.training.gpu_monitor import GpuMonitor
from meloformer.training.metrics import (
    STEPS_PER_LINE,
    StepMetrics,
    device_memory,
    finite,
    gpu_utilisation,
    host_memory,
)
from meloformer.training.nats import Nats
from meloformer.training.ranks import Ranks
from meloformer.training.step import Clock, Progress, StepCounts
from meloformer.training.work import PairRates, step_flops


class RankSpread(TypedDict):
    """Fields of StepMetrics on what each rank spent on its own, where there is any to compare."""

    rank_seconds_min: float | None
    rank_seconds_median: float | None
    rank_seconds_max: float | None
    slowest_rank: int | None


class StepMeter:
    """Measures the steps of a run.

    Args:
        model: its settings.
        ranks: the started processes.
        num_steps: optimizer steps of the whole run.
        clock: times them.
    """

    def __init__(self, model: MuseFormerConfig, ranks: Ranks, num_steps: int, clock: Clock) -> None:
        self._model, self._ranks, self._num_steps, self._clock = model, ranks, num_steps, clock
        self._pair_rates = PairRates(rule_of(model.rule))
        # The first rank's figure is the one that is written down.
        self._gpu: GpuMonitor | None = None
        if ranks.is_first and ranks.device.type == "cuda":
            self._gpu = GpuMonitor(partial(gpu_utilisation, ranks.device))

    def measure(
        self,
        progress: Progress,
        micro_batches: Sequence[Batch],
        counts: StepCounts,
        *,
        epoch: int,
        phase: int | None,
        loss: float,
        nats: Nats,
        grad_norm: float,
        learning_rate: float,
        graphs: int | None,
        failed_saves: int,
    ) -> StepMetrics:
        """What a step that has just ended amounts to.

        Args:
            progress: after the step.
            micro_batches: of this rank, on the CPU.
            counts: over all ranks.
            epoch: of the data.
            phase: of the start-up; None without phases.
            loss: nats per target over all ranks.
            nats: the same by kind.
            grad_norm: before clipping.
            learning_rate: of the step.
            graphs: compiled so far; None where nothing is compiled.
            failed_saves: checkpoints that could not be written.
        """
        device, seconds = self._ranks.device, self._clock.step_seconds
        return StepMetrics(
            step=progress.step,
            epoch=epoch,
            phase=phase,
            loss=finite(loss),
            nats_per_note=finite(nats.per_note),
            loss_by_kind={kind: finite(value) for kind, value in nats.per_kind.items()},
            tokens=counts.targets,
            lr=learning_rate,
            grad_norm=finite(grad_norm),
            step_seconds=seconds,
            tokens_per_second=counts.targets / seconds,
            mfu=self._mfu(progress.step, micro_batches, counts),
            padding=counts.padding,
            data_wait=min(counts.wait_seconds / seconds, 1.0),
            graphs=graphs,
            memory=device_memory(device),
            memory_host=host_memory(),
            gpu_utilisation=self._gpu.take() if self._gpu else None,
            skipped=progress.skipped,
            failed_saves=failed_saves,
            rollbacks=progress.rollbacks,
            eta_seconds=self._clock.pace_seconds * (self._num_steps - progress.step),
            **spread(counts.rank_seconds),
        )

    def close(self) -> None:
        """Stop to ask the GPU."""
        if self._gpu:
            self._gpu.close()

    def _mfu(self, step: int, micro_batches: Sequence[Batch], counts: StepCounts) -> float | None:
        peak = peak_flops(self._ranks.device)
        if peak is None:
            return None
        # Counting is slow next to a step, and rows of one length hardly differ from step to step.
        rate = self._pair_rates.of_step(micro_batches, refresh=step % STEPS_PER_LINE == 0)
        flops = step_flops(self._model, counts, rate)
        return flops / (self._clock.step_seconds * peak * self._ranks.world_size)


def spread(rank_seconds: Sequence[float]) -> RankSpread:
    """Least, median and most that a rank spent on its own, and which one that was.

    Args:
        rank_seconds: of each rank, by its number; all 0 where no step came before.

    >>> spread([1.0, 5.0, 2.0])["slowest_rank"]
    1
    """
    # A single rank is neither fast nor slow.
    if len(rank_seconds) == 1 or not any(rank_seconds):
        return RankSpread(
            rank_seconds_min=None,
            rank_seconds_median=None,
            rank_seconds_max=None,
            slowest_rank=None,
        )
    most = max(rank_seconds)
    return RankSpread(
        rank_seconds_min=min(rank_seconds),
        rank_seconds_median=median(rank_seconds),
        rank_seconds_max=most,
        slowest_rank=list(rank_seconds).index(most),
    )
