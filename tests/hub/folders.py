"""Small models and pieces for tests of what others hold in their hands."""

from pathlib import Path
from typing import Any

import numpy as np

from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.hid import encode
from meloformer.tokens.vocabulary import fingerprint
from tests.bridge.bases import random_base
from tests.midi.pieces import canonical_piece

PIANO, STRINGS = 1, 49


def a_piece(num_bars: int, seed: int = 0) -> QuantisedPiece:
    """Notes of two instruments in every bar."""
    rng = np.random.default_rng(seed)
    notes = [
        (bar, instrument, int(onset), int(rng.integers(40, 90)), 24, 66)
        for bar in range(num_bars)
        for instrument in (PIANO, STRINGS)
        for onset in rng.choice(96, 3, replace=False)
    ]
    return canonical_piece([METRE_INDEX[4, 4]] * num_bars, [40] * num_bars, notes)


def some_ids(num_bars: int, seed: int = 0) -> np.ndarray:
    """(T,) int64 tokens of `a_piece`."""
    return encode(a_piece(num_bars, seed)).astype(np.int64)


def a_model(**changes: Any) -> MuseFormer:
    """Two layers, unless told otherwise."""
    return random_base(**{"num_layers": 2, "width": 32, "ffn_width": 32, **changes})


def write_model(folder: Path, model: MuseFormer, step: int = 7) -> Path:
    """A model folder as a run writes it."""
    facts = {"tokenizer": fingerprint(), "step": str(step)}
    save_model(folder, model.config, model.state_dict(), facts)
    return folder
