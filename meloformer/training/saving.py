"""Saving and restoring a run in motion: all ranks write, the first one seals."""

import shutil
from pathlib import Path

from meloformer.errors import CheckpointError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.checkpoint import (
    DEEPSPEED_NAME,
    FOLDER_NAME,
    MODEL_NAME,
    TrainingState,
    begin_checkpoint,
    check_owner,
    finish_checkpoint,
    set_aside_later,
)
from meloformer.training.convert import to_universal
from meloformer.training.engine import CHECKPOINT_TAG, Engine
from meloformer.training.ranks import Ranks


def save_checkpoint(
    engine: Engine,
    run: Path,
    state: TrainingState,
    model: MuseFormerConfig,
    *,
    keep_last: int,
) -> Path:
    """Write the checkpoint of a step; collective.

    Args:
        engine: weights and optimizer state.
        run: the run folder.
        state: everything else.
        model: settings of the model.
        keep_last: checkpoints to keep; 0 keeps all.

    Returns:
        The sealed step folder.
    """
    ranks = engine.ranks
    folder = ranks.on_first(lambda: begin_checkpoint(run, state.step))
    engine.save(folder / DEEPSPEED_NAME)
    weights = engine.full_weights()

    def seal() -> Path:
        save_model(folder / MODEL_NAME, model, weights, {"tokenizer": fingerprint()})
        state.save(folder)
        return finish_checkpoint(folder, keep_last=keep_last)

    ranks.barrier()
    return ranks.on_first(seal)


def export_model(engine: Engine, run: Path, model: MuseFormerConfig) -> Path:
    """Write the trained model next to the checkpoints; collective."""
    weights = engine.full_weights()
    folder = run / MODEL_NAME
    engine.ranks.on_first(lambda: save_model(folder, model, weights, {"tokenizer": fingerprint()}))
    return folder


def read_state(ranks: Ranks, checkpoint: Path, run_id: str) -> TrainingState:
    """State of a checkpoint that has been verified, if it is this run's own."""

    def read() -> TrainingState:
        state = TrainingState.load(checkpoint)
        check_owner(state, checkpoint, run_id, fingerprint())
        return state

    return ranks.on_first(read)


def restore(engine: Engine, run: Path, checkpoint: Path, state: TrainingState) -> None:
    """Load weights and optimizer state; later checkpoints no longer count; collective.

    Raises:
        CheckpointError: written under another partitioning, or by a number of ranks from which
            this stage cannot be converted.
    """
    ranks = engine.ranks
    stage = state.ds_config["zero_optimization"]["stage"]
    if stage != engine.stage:
        raise CheckpointError(
            f"{checkpoint}: found ZeRO stage {stage}, expected {engine.stage}; "
            f"resume with the --config that wrote it"
        )
    if state.world_size == ranks.world_size:
        engine.load(checkpoint / DEEPSPEED_NAME)
    elif stage == 3:
        raise CheckpointError(
            f"{checkpoint}: found parts of {state.world_size} ranks under ZeRO stage 3, expected "
            f"{ranks.world_size}; resume with {state.world_size} ranks, or train with stage 1 or 2"
        )
    else:
        _restore_converted(engine, run, checkpoint)
    ranks.on_first(lambda: set_aside_later(run, state.step))


def _restore_converted(engine: Engine, run: Path, checkpoint: Path) -> None:
    ranks = engine.ranks
    # Beside the checkpoints and not under /tmp: every host must see it, and it may be large.
    target = run / FOLDER_NAME / ".converted"

    def convert() -> None:
        shutil.rmtree(target, ignore_errors=True)
        to_universal(checkpoint, target, CHECKPOINT_TAG)

    ranks.on_first(convert)
    engine.load(target, universal=True)
    ranks.barrier()
    ranks.on_first(lambda: shutil.rmtree(target))
