"""MeloFormer: train models of multi-track MIDI, and make music with them.

import meloformer
piece = meloformer.generate("runs/<name>", bars=8, tempo=120)
piece.save("out.mid")
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meloformer.midi.piece import Piece

__all__ = ["generate"]


def generate(checkpoint: str | Path | None = None, **wishes: Any) -> "Piece":
    """Write a piece; see `generation.wishes.generate`, which takes the same arguments."""
    # Here, or everybody who imports any part of the package would wait for torch.
    from meloformer.generation.wishes import generate as write

    return write(checkpoint, **wishes)
