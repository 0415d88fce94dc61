"""Where a trained MuseFormer lies that something builds upon."""

from pathlib import Path

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
