"""Training the systems of the arena side by side, each by its own clock."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.benchmarks.alternation import in_turn, own_clock
from meloformer.benchmarks.arena_pieces import Excerpts, batches
from meloformer.benchmarks.arena_systems import MicroBatch, System
from meloformer.benchmarks.mixed_training import Learner, weights_dtype
from meloformer.training.schedule import ScheduleConfig, learning_rate

# A budget as steps of the schedule: enough that one of them is a small change.
_SHARES = 10_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every system may spend; the first to be used up ends its training.

    Args:
        seconds: of its own training clock; None: any.
        notes: of training excerpts; None: any.
    """

    seconds: float | None = None
    notes: int | None = None

    def share(self, seconds: float, notes: int) -> float:
        """How much of it is spent, 0 and up."""
        spent = []
        if self.seconds is not None:
            spent.append(seconds / self.seconds)
        if self.notes is not None:
            spent.append(notes / self.notes)
        return max(spent)


def rate_at(share: float, peak: float, warmup_share: float) -> float:
    """Learning rate after a share of the budget: a rise, then a cosine to a tenth.

    By budget and not by steps: whoever does more steps in the same time decays no earlier.

    >>> [round(rate_at(share, 1.0, 0.1), 2) for share in (0.05, 0.1, 1.0)]
    [0.5, 1.0, 0.1]
    """
    schedule = ScheduleConfig(
        learning_rate=peak, warmup_steps=round(warmup_share * _SHARES), min_learning_rate_ratio=0.1
    )
    return learning_rate(min(max(round(share * _SHARES), 1), _SHARES), _SHARES, schedule)


class Trainee:
    """A system while it is trained: learner, clock, its own place in the order of excerpts.

    Args:
        system: on the CPU; moved to the device.
        excerpts: of the training split.
        budget: what it may spend.
        notes_per_batch: of an optimizer step.
        peak: highest learning rate.
        warmup_share: of the budget.
        seed: of the order of excerpts.
        device: where it trains.

    Attributes:
        seconds: of training so far; data is prepared off the clock.
        steps: optimizer steps so far.
        notes: of the excerpts trained on, those of all epochs.
        targets: likewise.
        nats_per_note: of the last step.
    """

    def __init__(
        self,
        system: System,
        excerpts: Excerpts,
        budget: Budget,
        *,
        notes_per_batch: int,
        peak: float,
        warmup_share: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.system, self._excerpts, self._budget = system, excerpts, budget
        self.peak, self._warmup_share, self._device = peak, warmup_share, device
        self._batches = batches(excerpts, notes_per_batch, seed)
        self.seconds, self.steps, self.notes, self.targets = 0.0, 0, 0, 0
        self.nats_per_note = float("nan")
        self._learner = Learner(system.master, device, weights_dtype(device))
        system.place(self._learner.master, self._learner.model)

    def __str__(self) -> str:
        return f"{self.system.name} {self.nats_per_note:.2f} ({self.steps:,} steps)"

    @property
    def share(self) -> float:
        """Of the budget that is spent."""
        return self._budget.share(self.seconds, self.notes)

    def warm_up(self) -> None:
        """Compile, and touch all memory once, before the clock runs; weights stay as they are."""
        numbers = next(batches(self._excerpts, 1, seed=0))
        self._backward(self.system.prepare([self._excerpts[number] for number in numbers]))
        self._learner.drop_gradients()

    def train(self, until: float) -> None:
        """Whole steps until this share of the budget is spent."""
        self.system.model.train()
        while self.share < min(until, 1.0):
            excerpts = [self._excerpts[number] for number in next(self._batches)]
            prepared = self.system.prepare(excerpts)
            num_notes = sum(excerpt.num_notes for excerpt in excerpts)
            rate = rate_at(self.share, self.peak, self._warmup_share)
            began = own_clock(self._device)
            nats = self._backward(prepared)
            self._learner.step(rate)
            self.seconds += own_clock(self._device) - began
            self.steps += 1
            self.notes += num_notes
            self.targets += sum(batch.num_targets for batch in prepared)
            self.nats_per_note = float(nats) / num_notes
        self.system.model.eval()

    def _backward(self, prepared: Sequence[MicroBatch]) -> Tensor:
        """Gradients of the mean over all targets; the nats of all."""
        num_targets = sum(batch.num_targets for batch in prepared)
        total = torch.zeros((), device=self._device)
        for batch in prepared:
            nats = self.system.nats(batch).sum()
            (nats / num_targets).backward()
            total += nats.detach()
        return total


def train_in_turns(trainees: Sequence[Trainee], num_turns: int) -> Iterator[int]:
    """Let each spend an equal part of its budget before the next part of any; yields every turn."""
    for trainee in trainees:
        trainee.warm_up()
    for turn in range(num_turns):
        for trainee in in_turn(trainees, turn):
            trainee.train(until=(turn + 1) / num_turns)
        yield turn
