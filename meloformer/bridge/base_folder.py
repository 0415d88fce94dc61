"""Where a trained MuseFormer lies that something builds upon."""

from pathlib import Path

from meloformer.errors import CheckpointError
from meloformer.model.box import boxed_model, describe_boxed_model, has_boxed_model
from meloformer.model.weights import Weights, find_model_folder, model_metadata, newest_run
from meloformer.tokens.vocabulary import check_fingerprint


def find_base(checkpoint: Path | None, weights: Weights) -> Path:
    """The model folder of a trained MuseFormer, of the vocabulary of this release.

    Args:
        checkpoint: run folder, step folder or model folder; the newest run if None.
        weights: those of the last step, or their average.

    Raises:
        CheckpointError: there is none.
        TokenError: it knows another vocabulary.
    """
    folder = find_model_folder(checkpoint or newest_run(), weights)
    check_fingerprint(model_metadata(folder).get("tokenizer", "none"), str(folder))
    return folder


def find_player(checkpoint: Path | None, weights: Weights) -> tuple[Path, str]:
    """The model that is to be played with, and which it is where nobody named one.

    Something that is built upon a model wants one that was chosen: `find_base`. Whoever wants a
    piece takes what there is.

    Args:
        checkpoint: run folder, step folder or model folder; the newest run if None, and the model
            in the box where there is no run.
        weights: those of the last step, or their average.

    Returns:
        The model folder, and a line for people; nothing where the model was named.

    Raises:
        CheckpointError: there is none.
        TokenError: it knows another vocabulary.
    """
    if checkpoint is not None:
        return find_base(checkpoint, weights), ""
    try:
        run = newest_run()
    except CheckpointError:
        if not has_boxed_model():
            raise
        folder = find_base(boxed_model(), weights)
        return folder, f"no --checkpoint and no model in runs/: {describe_boxed_model()}"
    return find_base(run, weights), f"no --checkpoint: {run}, the newest run"
