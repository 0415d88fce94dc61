"""A part of the workers: --check_gradients on a right engine and on wrong ones, and its traces."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meloformer.command_line import parse_flags
from meloformer.errors import TrainingError
from meloformer.training.check_gradients import check_gradients
from meloformer.training.config import TrainConfig
from meloformer.training.prepare import prepare
from meloformer.training.ranks import Ranks
from meloformer.training.session import Session

ROOT = Path(__file__).resolve().parents[2]


def open_session(shards: Path, folder: Path, ranks: Ranks, name: str, *, is_bf16: bool) -> Session:
    """A run of the real model under a partitioning, before its first step."""
    settings = json.loads((ROOT / f"ds_configs/{name}.json").read_text())
    config = folder.with_suffix(".json")
    if ranks.is_first:
        config.write_text(json.dumps(settings | {"bf16": {"enabled": is_bf16}}))
    ranks.barrier()
    flags = (
        f"--data {shards} --config {config} --output {folder} --model_size tiny --max_seq_len 256 "
        "--batch_size 2 --num_workers 0 --device cpu --validation_rows 1 --max_steps 2 "
        "--check_gradients on"
    )
    return Session(prepare(parse_flags(TrainConfig, flags.split())))


def facts(session: Session) -> list[Any]:
    """All that a check must leave as it was, in an order that can be compared."""
    return [
        {
            name: hashlib.sha256(weight.float().numpy().tobytes()).hexdigest()
            for name, weight in session.engine.full_weights().items()
        },
        session.engine.state_to_come(),
        session.stream.state(),
        session.stream.step,
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
    ]


def said(session: Session, change: Callable[[torch.Tensor, int], torch.Tensor]) -> str:
    """What the check says where the last rank changes the loss of a micro-batch, by its number."""
    backward, calls = session.engine.backward, 0
    is_last = session.ranks.rank == session.ranks.world_size - 1

    def changed(loss: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return backward(change(loss, calls) if is_last else loss)

    lines: list[str] = []
    say = session.metrics.say
    session.engine.backward = changed  # type: ignore[method-assign]
    session.metrics.say = lines.append  # type: ignore[method-assign]
    try:
        check_gradients(session)
    except TrainingError as error:
        lines.append(str(error))
    finally:
        session.engine.backward = backward  # type: ignore[method-assign]
        session.metrics.say = say  # type: ignore[method-assign]
    return "\n".join(lines)


def measure(session: Session) -> dict[str, Any]:
    """What is said of a right gradient and of wrong ones, and whether that leaves traces."""
    before = facts(session)
    return {
        "right": said(session, lambda loss, number: loss),
        "lost": said(session, lambda loss, number: loss * (number != 2)),
        "scaled": said(session, lambda loss, number: loss * 1.5),
        "not finite": said(session, lambda loss, number: loss * float("nan")),
        "right again": said(session, lambda loss, number: loss),
        "leaves no trace": facts(session) == before,
    }
