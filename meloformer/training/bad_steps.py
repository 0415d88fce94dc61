"""Steps whose numbers go wrong: not finite, or far above the steps before them.

All ranks come to one decision before the optimizer moves: a rank that dropped a step alone would
train on other weights from then on. The losses are looked at together with the gradient norm, after
the backward passes and not before: looking earlier would make the device wait once per micro-batch,
and dropping a step clears whatever its backward passes have left.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from meloformer.batches.batch import Batch
from meloformer.command_line import check_at_least
from meloformer.errors import ConfigError
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class BadStepConfig:
    """When a step is dropped, and when a run goes back.

    Args:
        max_skipped_steps: dropped steps in a row after which the run goes back to its last good
            checkpoint, and on with the data that comes after them.
        spike_sigma: drop steps whose loss or gradient norm lies more standard deviations than this
            above the mean of the good steps before; 0 drops only what is not finite.
        spike_window: good steps that mean and deviation are taken over; before there are as many,
            nothing is dropped as a spike.
    """

    max_skipped_steps: int = 10
    spike_sigma: float = 0.0
    spike_window: int = 128

    def __post_init__(self) -> None:
        check_at_least(self, {"max_skipped_steps": 1, "spike_window": 2})
        if not 0 <= self.spike_sigma < math.inf:
            raise ConfigError(f"--spike_sigma {self.spike_sigma:g}: allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all ranks hold of a step.

    Args:
        loss: nats per target over all ranks.
        grad_norm: of the whole gradient, before clipping.
        objection: why the step is dropped; None where it is taken.
    """

    loss: float
    grad_norm: float
    objection: str | None

    @property
    def is_good(self) -> bool:
        """Whether the optimizer may take the step."""
        return self.objection is None

    def describe(
        self,
        micro_batches: Sequence[Batch],
        losses: Sequence[torch.Tensor],
        pieces: Sequence[Sequence[Sequence[str]]],
        num_targets: int,
        ranks: Ranks,
    ) -> dict[str, Any]:
        """What a dropped step was made of, for the one who looks for the reason; one collective.

        Args:
            micro_batches: of this rank.
            losses: of those, as `step_loss` scales them.
            pieces: keys of the pieces of every micro-step and rank.
            num_targets: of the whole step.
            ranks: the started processes.

        Returns:
            why, and one of the batches per micro-step and rank: both numbers, its loss in nats per
            target (None where it is not finite or there is no target), and the keys.
        """
        size = len(losses) * ranks.world_size
        # Each rank's numbers at places of their own: the sum is all of them.
        own = [0.0] * (2 * size)
        for step, (loss, batch) in enumerate(zip(losses, micro_batches, strict=True)):
            place = step * ranks.world_size + ranks.rank
            own[place] = float(loss) * num_targets / ranks.world_size
            own[size + place] = batch.num_targets
        numbers = ranks.sum(own)
        batches = []
        for place, (nats, targets) in enumerate(zip(numbers[:size], numbers[size:], strict=True)):
            step, rank = divmod(place, ranks.world_size)
            mean = nats / targets if targets and math.isfinite(nats) else None
            keys = list(pieces[step][rank])
            batches.append({"micro_step": step, "rank": rank, "loss": mean, "pieces": keys})
        return {"why": self.objection, "batches": batches}


class Judge:
    """Compares each step with the good ones before it.

    Args:
        config: when a step is dropped.
        recent: loss and gradient norm of the last good steps, oldest first, as `state` gave them.
    """

    def __init__(self, config: BadStepConfig, recent: Iterable[Sequence[float]] = ()) -> None:
        self._sigma = config.spike_sigma
        self._recent: deque[tuple[float, float]] = deque(maxlen=config.spike_window)
        self.restore(recent)

    def state(self) -> list[list[float]]:
        """Plain data for a checkpoint: a resumed run decides as this one would have done."""
        return [list(pair) for pair in self._recent]

    def restore(self, recent: Iterable[Sequence[float]]) -> None:
        """Compare with these steps from now on."""
        self._recent.clear()
        self._recent.extend((loss, norm) for loss, norm in recent)

    def decide(self, loss: float, grad_norm: float, ranks: Ranks) -> Verdict:
        """Decide on a step, on all ranks alike.

        Args:
            loss: over all ranks; not finite where that of any rank is not.
            grad_norm: of the whole gradient; inf where an element on any rank is not finite.
            ranks: the started processes.
        """
        objection = self._objection("loss", loss, 0) or self._objection(
            "gradient norm", grad_norm, 1
        )
        # Cards of several kinds may differ in the last bit of a norm: one objection is that of all.
        if self._sigma and ranks.sum([objection is not None])[0] and objection is None:
            objection = "another rank objects to the gradient norm"
        if objection is None:
            self._recent.append((loss, grad_norm))
        return Verdict(loss=loss, grad_norm=grad_norm, objection=objection)

    def _objection(self, name: str, value: float, place: int) -> str | None:
        if not math.isfinite(value):
            return f"{name} is not finite"
        if not self._sigma or len(self._recent) < (self._recent.maxlen or 0):
            return None
        recent = np.array(self._recent)[:, place]
        mean, deviation = float(recent.mean()), float(recent.std())
        if value <= mean + self._sigma * deviation:
            return None
        return (
            f"{name} {value:.4g} is above {mean:.4g} + {self._sigma:g} x {deviation:.2g} of the "
            f"last {len(recent)} good steps"
        )
