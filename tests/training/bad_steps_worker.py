"""A part of ranks_worker.py: batches that go wrong, and the run that never saw them.

The last rank alone computes nonsense for some batches of the stream. The run has to come to the
weights of one that passes over those batches, and over what a rollback throws away.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from meloformer.batches.batch import Batch
from meloformer.command_line import parse_flags
from meloformer.model.weights import load_weights
from meloformer.training.checkpoint import TrainingState, step_folder
from meloformer.training.config import TrainConfig
from meloformer.training.loop import train
from meloformer.training.metrics import METRICS_NAME
from meloformer.training.prepare import prepare
from meloformer.training.ranks import Ranks
from meloformer.training.session import Session

ROOT = Path(__file__).resolve().parents[2]
# The last dropped step is the last of the run: going back, it has more to do.
NUM_STEPS, GLOBAL_BATCH, WINDOW, MAX_SKIPPED = 9, 4, 3, 2
SAVE_EVERY = 3
# Batches of the stream, counted from 1, and what the last rank's logits are multiplied by.
FAULTS = {2: math.nan, 5: 1000.0, 8: math.nan, 9: math.nan}
# The checkpoint to which the run goes back, and what it was trained on after that.
GOOD_STEP, THROWN_AWAY = 6, 7


def open_session(shards: Path, output: Path, ranks: Ranks, num_steps: int, *more: str) -> Session:
    flags = (
        f"--data {shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny "
        f"--max_seq_len 256 --batch_size 1 --num_workers 0 --device cpu --validation_rows 1 "
        f"--gradient_accumulation_steps {GLOBAL_BATCH // ranks.world_size} "
        # The same rate at every step, so that steps may be counted differently.
        f"--warmup_steps 0 --min_learning_rate_ratio 1 --learning_rate 3e-4 "
        f"--spike_sigma 6 --spike_window {WINDOW} --max_skipped_steps {MAX_SKIPPED} "
        f"--save_every {SAVE_EVERY} --output {output} --max_steps {num_steps}"
    )
    return Session(prepare(parse_flags(TrainConfig, [*flags.split(), *more])))


def corrupt(session: Session, faults: Mapping[int, float]) -> None:
    """Let the last rank's logits of some batches of the stream come out multiplied."""
    taken = session.progress.step
    wait_for, predict = session.clock.wait_for, session.predict
    is_last = session.ranks.rank == session.ranks.world_size - 1

    def counted(stream: Iterator[Any]) -> Any:
        nonlocal taken
        taken += 1
        return wait_for(stream)

    def corrupted(batch: Batch, model: Callable[..., torch.Tensor] | None = None) -> torch.Tensor:
        logits_BTV = predict(batch, model)
        if is_last and model is None and torch.is_grad_enabled():
            logits_BTV = logits_BTV * faults.get(taken, 1.0)
        return logits_BTV

    session.clock.wait_for = counted  # type: ignore[method-assign]
    session.predict = corrupted  # type: ignore[method-assign]


def pass_over(session: Session, batches: Collection[int]) -> None:
    """Never show a run some batches of its stream."""
    taken = session.progress.step
    wait_for = session.clock.wait_for

    def without(stream: Iterator[Any]) -> Any:
        nonlocal taken
        taken += 1
        while taken in batches:
            next(stream)
            taken += 1
        return wait_for(stream)

    session.clock.wait_for = without  # type: ignore[method-assign]


def measure(shards: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Both runs; what the first one wrote, and whether they agree."""
    disturbed, undisturbed = folder / "disturbed", folder / "undisturbed"
    session = open_session(shards, disturbed, ranks, NUM_STEPS, "--check_gradients", "on")
    corrupt(session, FAULTS)
    train(session)
    session.close()

    passed_over = {*FAULTS, THROWN_AWAY}
    num_good = NUM_STEPS - sum(batch <= GOOD_STEP for batch in FAULTS)
    session = open_session(shards, undisturbed, ranks, num_good, "--check_gradients", "off")
    pass_over(session, passed_over)
    train(session)
    session.close()
    ranks.barrier()

    weights = [load_weights(run / "model") for run in (disturbed, undisturbed)]
    return {
        "lines": [json.loads(line) for line in (disturbed / METRICS_NAME).open()],
        "undisturbed": [json.loads(line) for line in (undisturbed / METRICS_NAME).open()],
        "saved": TrainingState.load(step_folder(disturbed, GOOD_STEP)).__dict__,
        "log": (disturbed / "train.log").read_text(),
        "equal": {name: torch.equal(weights[0][name], weights[1][name]) for name in weights[0]},
    }
