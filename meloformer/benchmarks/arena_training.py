"""Training the systems of the arena side by side, each by its own clock."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.benchmarks.arena_pieces import Excerpts, batches
from meloformer.benchmarks.arena_systems import MicroBatch, System
from meloformer.training.optimizer import OptimizerConfig, build_optimizer
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


def now(device: torch.device) -> float:
    """Seconds of the clock that counts: what else a CPU does is nobody's fault."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Trainee:
    """A system while it is trained: optimizer, clock, its own place in the order of excerpts.

    On CUDA as the engine trains: weights and gradients in bf16, optimizer on fp32 copies.

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
        master = system.master.to(device)
        model = copy.deepcopy(master).to(torch.bfloat16) if device.type == "cuda" else master
        system.place(master, model)
        self._optimizer = build_optimizer(master, OptimizerConfig())
        self._masters: list[Tensor] = list(master.parameters())
        self._weights: list[Tensor] = list(model.parameters())

    def __str__(self) -> str:
        return f"{self.system.name} {self.nats_per_note:.2f} ({self.steps:,} steps)"

    @property
    def share(self) -> float:
        """Of the budget that is spent."""
        return self._budget.share(self.seconds, self.notes)

    @property
    def is_done(self) -> bool:
        return self.share >= 1

    def warm_up(self) -> None:
        """Compile, and touch all memory once, before the clock runs; weights stay as they are."""
        numbers = next(batches(self._excerpts, 1, seed=0))
        self._backward(self.system.prepare([self._excerpts[number] for number in numbers]))
        self._drop_gradients()

    def train(self, until: float) -> None:
        """Whole steps until this share of the budget is spent."""
        self.system.model.train()
        while self.share < min(until, 1.0):
            excerpts = [self._excerpts[number] for number in next(self._batches)]
            prepared = self.system.prepare(excerpts)
            num_notes = sum(excerpt.num_notes for excerpt in excerpts)
            rate = rate_at(self.share, self.peak, self._warmup_share)
            began = now(self._device)
            nats = self._backward(prepared)
            self._update(rate)
            self.seconds += now(self._device) - began
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

    def _update(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        has_copies = self._masters[0] is not self._weights[0]
        if has_copies:
            for master, weight in zip(self._masters, self._weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self._masters, OptimizerConfig().gradient_clipping)
        self._optimizer.step()
        if has_copies:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for parameter in (*self._weights, *self._masters):
            parameter.grad = None


def train_in_turns(trainees: Sequence[Trainee], num_turns: int) -> Iterator[int]:
    """Let each spend an equal part of its budget before the next part of any; yields every turn.

    A machine whose speed drifts so hits all alike; every second turn runs backwards.
    """
    for trainee in trainees:
        trainee.warm_up()
    for turn in range(num_turns):
        for trainee in trainees[:: -1 if turn % 2 else 1]:
            trainee.train(until=(turn + 1) / num_turns)
        yield turn
