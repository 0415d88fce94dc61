"""Attribute heads kept beside the text states that they were trained on, for the next bridge."""

from pathlib import Path

from meloformer.bridge.attribute_heads import AttributeHeads, load_heads, save_heads
from meloformer.errors import CheckpointError
from meloformer.shards.notes import read_note, write_note

_NOTE_NAME = "heads.json"


def find_heads(
    folder: Path, fingerprint: str, encoder_fingerprint: str
) -> tuple[AttributeHeads, dict[str, float]] | None:
    """Heads that were kept, on the CPU, and their scores; None where there are none that serve.

    Args:
        folder: see `keep_heads`.
        fingerprint: of all that they follow from.
        encoder_fingerprint: whose states they read.
    """
    note = read_note(folder / _NOTE_NAME)
    if not isinstance(note, dict) or note.get("fingerprint") != fingerprint:
        return None
    try:
        return load_heads(folder, encoder_fingerprint=encoder_fingerprint), dict(note["scores"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None  # damaged: they are trained again, and written over


def keep_heads(
    folder: Path, fingerprint: str, heads: AttributeHeads, scores: dict[str, float]
) -> None:
    """Keep heads for others who ask for the same.

    Args:
        folder: made where missing; what another fingerprint left there gives way.
        fingerprint: of all that they follow from.
        heads: trained.
        scores: see `attribute_training.score_heads`.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The note last: where it stands, the heads are those that it tells of.
    (folder / _NOTE_NAME).unlink(missing_ok=True)
    save_heads(folder, heads)
    write_note(folder / _NOTE_NAME, {"fingerprint": fingerprint, "scores": scores})
