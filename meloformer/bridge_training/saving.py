"""Checkpoints of a bridge in training: any number of ranks under any stage goes on from them."""

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from meloformer.bridge.bridge_folder import HEADS_NAME, BridgeFacts, save_bridge
from meloformer.bridge_training.engine import AccelerateEngine
from meloformer.bridge_training.objectives import BRIDGE
from meloformer.errors import CheckpointError
from meloformer.model.weights import MODEL_NAMES
from meloformer.training.checkpoint import (
    PARTS_NAME,
    TrainingState,
    begin_checkpoint,
    drop_superseded,
    finish_checkpoint,
    set_aside_later,
    whole_or_absent,
)
from meloformer.training.host_copy import HostCopy
from meloformer.training.parts import part_name


def save_checkpoint(
    engine: AccelerateEngine,
    run: Path,
    facts: BridgeFacts,
    state: TrainingState,
    *,
    keep_last: int,
) -> Path:
    """Write checkpoints/step-N, whole or not at all; collective.

    Raises:
        CheckpointError: on all ranks, where one of them cannot write.
    """
    ranks = engine.ranks
    obstacle = ranks.on_first(partial(_begin, run, state.step))
    folder = run / "checkpoints" / f".step-{state.step}"
    host = HostCopy(ranks.device)
    part = engine.copy_part(host)
    host.wait()
    try:
        if not obstacle:
            part.write(folder / PARTS_NAME / part_name(ranks.rank))
            if ranks.is_first:
                of_step = facts.with_extra(step=state.step)
                _write(folder / MODEL_NAMES["raw"], of_step, host.weights, run)
                if host.averaged:
                    _write(folder / MODEL_NAMES["ema"], of_step, host.averaged, run)
                state.save(folder)
    except OSError as error:
        obstacle = f"{error.strerror} ({error.filename})"
    if ranks.sum([float(bool(obstacle))])[0]:
        ranks.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))
        raise CheckpointError(
            f"{folder}: cannot be written ({obstacle or 'by another rank'}); allowed: a disk with "
            "room that the hosts of all ranks share; then go on with --resume auto"
        )
    return ranks.on_first(lambda: finish_checkpoint(folder, keep_last=keep_last))


def _begin(run: Path, step: int) -> str:
    try:
        begin_checkpoint(run, step)
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return ""


def restore(engine: AccelerateEngine, run: Path, checkpoint: Path, state: TrainingState) -> None:
    """Load weights and optimizer state; what came later no longer counts; collective.

    Raises:
        CheckpointError: the parts are damaged, or of another model.
    """
    engine.load(checkpoint / PARTS_NAME)
    engine.ranks.on_first(lambda: set_aside_later(run, state.step))


def export_bridge(engine: AccelerateEngine, run: Path, facts: BridgeFacts, step: int) -> Path:
    """Write model/, and model_ema/ where an average is kept, each whole or absent; collective.

    Raises:
        CheckpointError: the disk is full, or the run folder cannot be written.
    """
    of_step = facts.with_extra(step=step)
    # The model last: where it stands, all is written.
    if engine.has_average:
        averaged = _copied(engine.each_averaged_weight())
        engine.ranks.on_first(partial(_export, run / MODEL_NAMES["ema"], of_step, averaged))
    weights = _copied(engine.each_weight())
    folder = engine.ranks.on_first(partial(_export, run / MODEL_NAMES["raw"], of_step, weights))
    engine.ranks.on_first(lambda: drop_superseded(run))
    return folder


def _export(folder: Path, facts: BridgeFacts, weights: dict[str, torch.Tensor]) -> Path:
    return whole_or_absent(folder, lambda at: _write(at, facts, weights, folder.parent))


def _write(folder: Path, facts: BridgeFacts, weights: dict[str, torch.Tensor], run: Path) -> None:
    """A bridge and, where the run has trained some, its attribute heads."""
    save_bridge(folder, facts, _bridge_alone(weights))
    heads = heads_folder(run) / HEADS_NAME
    if heads.is_file():
        shutil.copyfile(heads, folder / HEADS_NAME)


def heads_folder(run: Path) -> Path:
    """Where a run keeps the attribute heads that it trained before the bridge."""
    return run / "heads"


def _copied(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: weight.to("cpu", copy=True) for name, weight in weights}


def _bridge_alone(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of an objective is the bridge, under the bridge's own names."""
    return {
        name.removeprefix(BRIDGE): weight
        for name, weight in weights.items()
        if name.startswith(BRIDGE)
    }
