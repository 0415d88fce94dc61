"""Candidates for the answer to a question, timed in turns and held against the first of them."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.alternation import (
    REFUSALS,
    Candidate,
    Failure,
    Timing,
    reason_of,
    release,
    time_in_turns,
)
from meloformer.benchmarks.bench_models import build_model, num_graphs, open_rate
from meloformer.benchmarks.bench_rows import BenchRows
from meloformer.benchmarks.bench_tables import mebibytes, percent, plain, rounded, table_of
from meloformer.errors import ConfigError
from meloformer.model.attention import AttentionPlan, Backend, build_plan
from meloformer.model.config import MuseFormerConfig
from meloformer.model.injection import NoisedOwn
from meloformer.model.kernel_options import PINNED, Options, device_family
from meloformer.model.masks import BLOCK_SIZE, num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.training.graphs import Shapes, limit_graphs
from meloformer.training.loss import step_loss
from meloformer.training.prepare import backend_of

Loss = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate for the answer to a question.

    Args:
        question: in a word or two; choices of one question stand side by side.
        name: of the candidate.
        config: the model, its rule included.
        is_judged: whether it computes what the first candidate of the question computes.
        block_size: of the block lists.
        fuse: whether pointwise parts are compiled.
        options: of the kernel; None takes what is pinned.
        find_options: finds them when the question is asked, which may take minutes.
        adapt: puts other kernels into the model.
        loss: of logits, targets and their number; None is that of training.
        refusal: why it cannot be tried; "" it can.
    """

    question: str
    name: str
    config: MuseFormerConfig
    is_judged: bool = True
    block_size: int = BLOCK_SIZE
    fuse: bool = False
    options: Options | None = None
    find_options: Callable[[], Options] | None = None
    adapt: Callable[[MuseFormer], None] = lambda model: None
    loss: Loss | None = None
    refusal: str = ""

    def settled(self) -> "Choice":
        """The same with its options found, or refused because there are none."""
        if self.find_options is None:
            return self
        try:
            return replace(self, options=self.find_options(), find_options=None)
        except REFUSALS as error:
            return replace(self, refusal=reason_of(error))

    def loss_of(self, model: MuseFormer, plan: AttentionPlan, batch: Batch) -> Tensor:
        """Mean cross entropy of a batch."""
        start = NoisedOwn.of(batch.open_seeds)
        logits_BTV = model(batch.ids_BT, batch.layout, plan, start)
        if self.loss is not None:
            return self.loss(logits_BTV, batch.targets_BT, batch.num_targets)
        return step_loss(logits_BTV, batch.targets_BT, batch.num_targets, 1, fuse=self.fuse)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all candidates share.

    Args:
        rows: what the models read.
        device: where.
        dtype: of weights and attention.
        rounds: timed calls of each.
    """

    rows: BenchRows
    device: torch.device
    dtype: torch.dtype
    rounds: int

    @property
    def backend(self) -> Backend:
        """The attention that has a backward on this device."""
        return backend_of(self.device)

    @property
    def judging_dtype(self) -> torch.dtype:
        """Next higher precision."""
        return torch.float32 if self.dtype == torch.bfloat16 else torch.float64

    def allow_graphs(self, choices: Sequence[Choice]) -> None:
        """Let torch compile for these and their judges, and for no other."""
        T = self.rows.seq_len
        shapes = Shapes(train=(BatchShape(len(self.rows.rows), T, num_summaries(T)),), score=())
        allowed = sum(
            num_graphs(choice.config, shapes, self.backend, fuse=fuse)
            for choice in choices
            for fuse in (choice.fuse, False)
        )
        if allowed:
            limit_graphs(allowed)


def measure_choices(
    choices: Sequence[Choice], conditions: Conditions
) -> Iterator[list[dict[str, Any]]]:
    """Figures of the candidates of one question after the other.

    Args:
        choices: as `find_choices` returns them.
        conditions: what they share.
    """
    conditions.allow_graphs(choices)
    for question, group in groupby(choices, key=lambda choice: choice.question):
        of_question = [choice.settled() for choice in group]
        judge = _Judge(of_question[0], conditions)
        judge.prepare()
        steps = {choice.name: _Step(choice, conditions, judge) for choice in of_question}
        timings = time_in_turns(
            {name: Candidate(step, step.context) for name, step in steps.items()},
            conditions.device,
            conditions.rounds,
        )
        best = winner(timings)
        rows = []
        for name, timing in timings.items():
            row: dict[str, Any] = {"question": question, "name": name, "is_winner": name == best}
            row["error"] = steps[name].error
            if isinstance(timing, Failure):
                rows.append(row | {"why": timing.reason})
                continue
            first = next(iter(timings.values()))
            rows.append(
                row
                | {
                    "ms": 1000 * timing.median,
                    "spread": timing.spread,
                    "tokens_per_second": conditions.rows.num_tokens / timing.median,
                    "times_first": first.median / timing.median
                    if isinstance(first, Timing)
                    else None,
                    "memory": timing.memory,
                    "graphs": timing.graphs,
                    "first_seconds": timing.first_seconds,
                    "options": steps[name].choice.options or None,
                }
            )
        del judge, steps
        release(conditions.device)
        yield rows


def winner(timings: Mapping[str, Timing | Failure]) -> str | None:
    """Who is fastest; the first one unless another is ahead of it by more than both spread."""
    ran = {name: timing for name, timing in timings.items() if isinstance(timing, Timing)}
    if not ran:
        return None
    best = min(ran, key=lambda name: ran[name].median)
    first = next(iter(timings))
    if first not in ran:
        return best
    lead = ran[first].median / ran[best].median - 1
    return best if lead > max(ran[first].spread, ran[best].spread) else first


class _Judge:
    """The first candidate of a question in a higher precision, uncompiled but for attention."""

    def __init__(self, choice: Choice, conditions: Conditions) -> None:
        self.choice, self._conditions = choice, conditions
        self._expected: list[Tensor] | None = None
        self._why_none = ""
        self._allowed: float | None = None

    def prepare(self) -> None:
        """Compute what is expected, before anything is timed."""
        if not self.choice.is_judged:
            return
        plain = replace(self.choice, fuse=False, options=None)
        try:
            built = _built(plain, self._conditions, self._conditions.judging_dtype)
            self._expected = _gradients(plain, *built)
        except REFUSALS as error:
            self._why_none = reason_of(error)

    def error(self, found: Sequence[Tensor], *, is_first: bool) -> float:
        """Largest relative error of the loss and any gradient.

        Raises:
            ConfigError: it is beyond what rounding costs the first candidate, or nobody knows that.
        """
        if self._expected is None:
            raise ConfigError(f"nothing to judge it by: in higher precision {self._why_none}")
        errors = [
            float((a.to(b.dtype) - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
            for a, b in zip(found, self._expected, strict=True)
        ]
        # `max` passes over what is no number.
        error = max(error if error == error else math.inf for error in errors)
        if is_first and error < math.inf:
            # Twice: which way single numbers are rounded is chance.
            self._allowed = 2 * error + torch.finfo(self._conditions.dtype).eps
        if self._allowed is None:
            raise ConfigError("nothing to judge it by: the first candidate gave no numbers")
        if not error <= self._allowed:
            raise ConfigError(
                f"refused: loss and gradients are off by {error:.2%} of a tensor, where rounding "
                f"explains {self._allowed:.2%}"
            )
        return error


@dataclass
class _Step:
    """Forward and backward of one candidate, which is built and judged at its first call."""

    choice: Choice
    conditions: Conditions
    judge: _Judge
    error: float | None = None
    _built: tuple[MuseFormer, AttentionPlan, Batch] | None = field(default=None)

    def __call__(self) -> None:
        if self._built is None:
            if self.choice.refusal:
                raise ConfigError(self.choice.refusal)
            built = _built(self.choice, self.conditions, self.conditions.dtype)
            if self.choice.is_judged:
                found = _gradients(self.choice, *built)
                is_first = self.choice is self.judge.choice
                self.error = self.judge.error(found, is_first=is_first)
            self._built = built
        model, plan, batch = self._built
        self.choice.loss_of(model, plan, batch).backward()
        model.zero_grad(set_to_none=True)

    def context(self) -> AbstractContextManager[None]:
        """The kernel's options."""
        choice = self.choice
        device = self.conditions.device
        if choice.options is None or device.type != "cuda":
            return contextlib.nullcontext()
        if not choice.options and device_family(torch.cuda.get_device_name(device)) is None:
            return contextlib.nullcontext()  # nothing is pinned for such devices
        return _pinned(choice, self.conditions)


def _built(
    choice: Choice, conditions: Conditions, dtype: torch.dtype
) -> tuple[MuseFormer, AttentionPlan, Batch]:
    rule, backend = rule_of(choice.config.rule), conditions.backend
    model = build_model(choice.config, fuse=choice.fuse).to(conditions.device, dtype)
    choice.adapt(model)
    blocks_rule = rule if backend == "flex" else None
    rate = open_rate(choice.config)
    batch = conditions.rows.batch(blocks_rule, choice.block_size, open_rate=rate)
    batch = batch.to(conditions.device)
    return model, build_plan(batch.layout, rule, backend, batch.blocks), batch


def _gradients(
    choice: Choice, model: MuseFormer, plan: AttentionPlan, batch: Batch
) -> list[Tensor]:
    """The loss, and the gradient of every weight."""
    loss = choice.loss_of(model, plan, batch)
    loss.backward()
    found = [loss.detach()]
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


@contextlib.contextmanager
def _pinned(choice: Choice, conditions: Conditions) -> Iterator[None]:
    key = pin_of(choice.config, conditions.device, conditions.dtype)
    before = PINNED.get(key)
    assert choice.options is not None
    PINNED[key] = choice.options
    try:
        yield
    finally:
        del PINNED[key]
        if before is not None:
            PINNED[key] = before


def pin_of(
    config: MuseFormerConfig, device: torch.device, dtype: torch.dtype
) -> tuple[str, int, torch.dtype, int]:
    name = torch.cuda.get_device_name(device)
    family = device_family(name)
    if family is None:
        raise ConfigError(
            f"options are pinned for families of devices, and {name} is of none; add it to "
            "model/kernel_options.py"
        )
    return family, config.head_width, dtype, BLOCK_SIZE


_COLUMNS = {
    "question": ("question", plain),
    "name": ("candidate", plain),
    "winner": ("", plain),
    "ms": ("ms", rounded(2)),
    "spread": ("spread", percent),
    "times_first": ("times the first", rounded(3)),
    "memory": ("MiB", mebibytes),
    "graphs": ("graphs", plain),
    "first_seconds": ("first, s", rounded(1)),
    "error": ("error", percent),
}


def choices_table(rows: Sequence[Mapping[str, Any]], pin: str | None = None) -> Table:
    """What `measure_choices` found; the winner of each question is marked.

    Args:
        rows: of all questions.
        pin: entry for model/kernel_options.py, where tiles were found.
    """
    shown = [{**row, "winner": "winner" if row["is_winner"] else None} for row in rows]
    table = table_of("what to choose; the first of each is what training takes", shown, _COLUMNS)
    if pin:
        table.caption = f"tiles for PINNED in model/kernel_options.py: {pin}"
    return table
