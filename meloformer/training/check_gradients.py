"""Is the gradient of the engine the one that a single process computes? Asked before step 1.

Partitioning, accumulation and reduction have gone wrong silently in many releases: gradients too
small, a micro-batch lost, one rank left out. A run that trains on those falls behind for days and
nobody can say why. One small step through the engine, beside plain autograd, tells in seconds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from meloformer.batches.batch import Batch
from meloformer.errors import TrainingError
from meloformer.training.engine import Engine
from meloformer.training.graphs import Watch
from meloformer.training.loss import share_of_step, token_nats
from meloformer.training.preflight import is_cheap
from meloformer.training.session import Session

# A lost micro-batch is one half of the gradient, which accumulates over more than one.
MICRO_STEPS = 2
# Relative error that rounding can explain: of sums in another order, and of gradients that travel
# between ranks in bf16, once per hop. What is lost or scaled wrongly on one rank of many is more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}

Logits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class GradientCheck:
    """How far the engine's gradient is from that of a single process.

    Args:
        name: of the parameter with the largest error; None where nothing could be compared.
        error: its relative error; nan where the engine's gradient is not finite.
        tolerance: largest error that rounding explains.
        num_parameters: compared.
        seconds: that the check took.
    """

    name: str | None
    error: float
    tolerance: float
    num_parameters: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether training may begin."""
        return self.name is None or self.error <= self.tolerance

    def line(self) -> str:
        """What is said of a gradient that is right, or could not be compared."""
        if self.name is None:
            return (
                "--check_gradients: the gradient is not finite in a single process either, and was "
                "not compared"
            )
        return (
            f"--check_gradients: {self.num_parameters} gradients are those of a single process, "
            f"largest relative error {self.error:.1e} of {self.tolerance:g} allowed "
            f"({self.name}), in {self.seconds:.1f} s"
        )


def check_gradients(session: Session) -> None:
    """Before the first step of a start, where --check_gradients is on; collective.

    The beginnings of the next step's windows, in the smallest shape that is declared: no graph is
    compiled that training would not want. Nothing else moves: not the weights, the optimizer, the
    random numbers or the place in the data.

    Raises:
        TrainingError: the engine's gradient is not that of a single process.
    """
    first, ranks = session.progress.step + 1, session.ranks
    if session.config.check_gradients == "off" or first > session.num_steps:
        return
    shape = session.graphs.shapes.of_rows(session.warming.rows_at(first)).smallest
    whole = shape._replace(rows=shape.rows * ranks.world_size * MICRO_STEPS)
    if not is_cheap(session.model_config, whole, ranks.device):
        session.metrics.say(
            "--check_gradients: on a CPU a step of this length would take more than seconds; the "
            "gradient is not compared with that of a single process"
        )
        return
    session.warming.warm_up(first)
    specs = session.stream.short_step(shape, MICRO_STEPS)
    if not specs or session.stopping.ask():
        return

    def build_reference() -> tuple[nn.Module, Logits]:
        model = session.build_model()
        return model, partial(session.predict, model=model)

    check = compare_gradients(
        session.engine,
        session.predict,
        build_reference,
        lambda step, rank: session.stream.collate(specs[step][rank]),
        fuse=session.fuse,
        watch=lambda batch: session.watch("the check of the gradients", batch),
    )
    refuse_wrong(check, f"ZeRO stage {session.engine.stage} on {ranks.world_size} rank(s)")
    session.metrics.say(check.line())
    session.clock.pause()


def compare_gradients(
    engine: Engine,
    predict: Logits,
    build_reference: Callable[[], tuple[nn.Module, Logits]],
    collate: Callable[[int, int], Batch],
    *,
    fuse: bool,
    watch: Watch,
) -> GradientCheck:
    """Compute one small step through the engine and in a single process; collective.

    Weights, optimizer state and random numbers stay as they are.

    Args:
        engine: the model, between two steps; its gradients are dropped.
        predict: logits of a batch, through the engine.
        build_reference: a model like the engine's before the engine got it, and its logits of a
            batch; called on the first rank only.
        collate: batch of a micro-step and a rank.
        fuse: whether the engine's loss is compiled.
        watch: held around each batch.
    """
    began = time.perf_counter()
    ranks, device = engine.ranks, engine.ranks.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        own = [collate(step, ranks.rank) for step in range(MICRO_STEPS)]
        num_targets = max(ranks.sum([sum(batch.num_targets for batch in own)])[0], 1.0)
        for batch in (batch.to(device) for batch in own):
            with watch(batch):
                nats_BT = token_nats(predict(batch), batch.targets_BT, fuse=fuse)
                engine.backward(share_of_step(nats_BT, num_targets, ranks.world_size))
        found = engine.full_gradients()
        found = found if ranks.is_first else {}
        engine.drop_gradients()
        weights = {name: weight.cpu() for name, weight in engine.each_weight()}

        def compare() -> GradientCheck:
            model, reference = build_reference()
            model.load_state_dict(weights)
            dtype = torch.bfloat16 if engine.is_bf16 else torch.float32
            model.to(device, dtype)
            batches = [
                collate(step, rank)
                for step in range(MICRO_STEPS)
                for rank in range(ranks.world_size)
            ]
            expected = _plain_gradients(model, reference, batches, num_targets, watch)
            errors = {name: _error(found[name], *expected[name]) for name in expected}
            # nan is the largest of all: what is not finite in the engine alone is wrong.
            worst = max(errors, key=lambda name: (math.isnan(errors[name]), errors[name]))
            is_finite = all(torch.isfinite(gradient).all() for gradient, _ in expected.values())
            return GradientCheck(
                name=worst if is_finite else None,
                error=errors[worst],
                tolerance=TOLERANCE[dtype],
                num_parameters=len(errors),
                seconds=time.perf_counter() - began,
            )

        check = ranks.on_first(compare)
    if device.type == "cuda":
        # What the check held in odd sizes should not be found in pieces by the first step.
        del found, weights
        torch.cuda.empty_cache()
    return check


def refuse_wrong(check: GradientCheck, where: str) -> None:
    """Stop a run whose gradient is wrong, on all ranks.

    Args:
        check: the same on all ranks.
        where: the partitioning, for the message.

    Raises:
        TrainingError: names the parameter, its error and what to do.
    """
    if check.is_right:
        return
    raise TrainingError(
        f"--check_gradients: found a gradient of {check.name} that differs by {check.error:.2g} of "
        f"its size from that of a single process, under {where}; allowed: {check.tolerance:g}; "
        "nothing was trained; take another --config (ds_configs/zero1.json, zero2.json, "
        "zero3.json) and the versions of torch and deepspeed that constraints.txt pins; "
        "--check_gradients off trains all the same"
    )


def _plain_gradients(
    model: nn.Module,
    predict: Logits,
    batches: Sequence[Batch],
    num_targets: float,
    watch: Watch,
) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter the gradient of the mean over all targets, and its size before cancellation.

    The size is the root of the sum of squares over the batches: gradients that cancel each other
    keep the rounding that each had.
    """
    device = next(model.parameters()).device
    sums = {
        name: (
            torch.zeros_like(parameter, dtype=torch.float32),
            torch.zeros((), device=device),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for batch in (batch.to(device) for batch in batches):
        with watch(batch):
            (token_nats(predict(batch), batch.targets_BT).sum() / num_targets).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient, square = sums[name]
                gradient += parameter.grad
                square += parameter.grad.float().square().sum()
                parameter.grad = None
    return {name: (gradient, square.sqrt()) for name, (gradient, square) in sums.items()}


def _error(found: Tensor, expected: Tensor, size: Tensor) -> float:
    """Of a whole gradient, relative to the larger of what it is and what its parts are."""
    difference = float((found.to(expected).float() - expected).norm())
    scale = max(float(expected.norm()), float(size))
    # What has no gradient in one process must have none in the engine.
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))
