"""A small model, an encoder, bridges of both kinds for it, and pieces that lend summaries."""

from pathlib import Path

import pytest

from meloformer.bridge.attribute_heads import save_heads
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.museformer import MuseFormer
from tests.bridge.bases import random_base
from tests.bridge.text_encoders import write_qwen3
from tests.generation.steered_models import (
    BASE_WIDTH,
    SAID,
    heads_that_say,
    write_run,
)
from tests.midi.pieces import canonical_piece


@pytest.fixture(scope="module")
def base() -> MuseFormer:
    return random_base(width=BASE_WIDTH, ffn_width=32, open_summary_rate=0.3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def qformer_run(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """With heads that say SAID of every text."""
    folder = write_run(tmp_path_factory.mktemp("qformer"), QFormer, QFormerConfig, encoder)
    save_heads(folder / "model", heads_that_say(SAID, encoder))
    return folder


@pytest.fixture(scope="module")
def diffusion_run(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """Without heads."""
    folder = tmp_path_factory.mktemp("diffusion")
    return write_run(folder, DiffusionBridge, DiffusionBridgeConfig, encoder)


@pytest.fixture(scope="module")
def midi_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pieces of 3 and of 5 bars."""
    folder = tmp_path_factory.mktemp("midi")
    for bars in (3, 5):
        notes = [(bar, 1, 0, 60 + bars * bar, 24, 66) for bar in range(bars)]
        piece = canonical_piece([SAID.metre] * bars, [40] * bars, notes)
        write_midi(to_piece(piece), folder / f"{bars}.mid")
    return sorted(folder.iterdir())
