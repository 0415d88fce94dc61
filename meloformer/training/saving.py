"""Saving and restoring a run in motion: all ranks write, the first one seals."""

import shutil
from pathlib import Path

from meloformer.errors import CheckpointError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.weights import model_metadata, save_model
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.checkpoint import (
    DEEPSPEED_NAME,
    FOLDER_NAME,
    MODEL_NAME,
    TrainingState,
    begin_checkpoint,
    check_owner,
    drop_superseded,
    finish_checkpoint,
    put_in_place,
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
        save_model(folder / MODEL_NAME, model, weights, _facts(state.step))
        state.save(folder)
        return finish_checkpoint(folder, keep_last=keep_last)

    ranks.barrier()
    return ranks.on_first(seal)


def export_model(engine: Engine, run: Path, model: MuseFormerConfig, step: int) -> Path:
    """Write the model after its last step next to the checkpoints, whole or not at all; collective.

    Returns:
        The model's folder.
    """
    weights = engine.full_weights()

    def export() -> Path:
        aside = run / f".{MODEL_NAME}"
        shutil.rmtree(aside, ignore_errors=True)
        save_model(aside, model, weights, _facts(step))
        folder = put_in_place(aside)
        drop_superseded(run)
        return folder

    return engine.ranks.on_first(export)


def is_exported(run: Path, step: int) -> bool:
    """Whether the run's model is there, and is the one after this step."""
    try:
        return model_metadata(run / MODEL_NAME).get("step") == str(step)
    except CheckpointError:
        return False


def check_tokenizer(model: Path) -> None:
    """Refuse weights that were trained on another vocabulary.

    Args:
        model: folder of the weights.

    Raises:
        CheckpointError: their header states another fingerprint, or none.
    """
    found = model_metadata(model).get("tokenizer", "none")
    if found != fingerprint():
        raise CheckpointError(
            f"{model}: found weights for tokenizer {found[:12]}, expected {fingerprint()[:12]}; "
            "take weights of this vocabulary, or the release that wrote these"
        )


def _facts(step: int) -> dict[str, str]:
    return {"tokenizer": fingerprint(), "step": str(step)}


def read_state(ranks: Ranks, checkpoint: Path, run_id: str) -> TrainingState:
    """State of a checkpoint that has been verified, if it is this run's own."""

    def read() -> TrainingState:
        state = TrainingState.load(checkpoint)
        check_owner(state, checkpoint, run_id, fingerprint())
        check_tokenizer(checkpoint / MODEL_NAME)
        return state

    return ranks.on_first(read)


def restore(engine: Engine, run: Path, checkpoint: Path, state: TrainingState) -> None:
    """Load weights and optimizer state; what came later no longer counts; collective.

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
