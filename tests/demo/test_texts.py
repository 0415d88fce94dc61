"""Texts through the page: with a bridge that was made for the model, and an encoder beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meloformer.bridge.attribute_heads import save_heads
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.demo.composer import load_composer
from meloformer.demo.settings import PageConfig
from meloformer.errors import CheckpointError
from meloformer.midi.grid import METRES
from meloformer.model.weights import model_fingerprint
from tests.bridge.bridge_folders import write_bridge
from tests.bridge.text_encoders import WIDTH, write_qwen3
from tests.demo.pages import LIMITS, SMALL, Visitor, serving
from tests.generation.steered_models import SAID, heads_that_say

SHAPE = {
    "text_width": WIDTH,
    "summary_width": 32,
    "num_queries": 24,
    "width": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 64,
}


def write_run(folder: Path, encoder: TextEncoder, fingerprint: str) -> Path:
    facts = {"fingerprint": fingerprint, "width": 32}
    write_bridge(folder / "model", QFormer(QFormerConfig(**SHAPE)), encoder, facts)
    save_heads(folder / "model", heads_that_say(SAID, encoder))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def page(run_folder: Path, encoder, tmp_path_factory) -> Iterator[Visitor]:
    fingerprint = model_fingerprint(run_folder / "model")
    bridge = write_run(tmp_path_factory.mktemp("bridge"), encoder, fingerprint)
    config = PageConfig(checkpoint=run_folder, bridge=bridge, device="cpu", limits=LIMITS)
    with serving(load_composer(config)) as visitor:
        yield visitor


def piece(page: Visitor, **wish: object) -> dict:
    *_, last = page.post("/api/write", {**SMALL, **wish}).events
    assert last["event"] == "piece", last
    return last


def test_the_page_is_told_that_texts_are_read(page: Visitor) -> None:
    facts = page.get("/api/facts").body.decode()
    assert '"bridge": true' in facts and '"strict": true' in facts
    assert "tmp" not in facts


def test_a_text_changes_the_piece_and_the_same_text_repeats_it(page: Visitor) -> None:
    calm = piece(page, text="calm piano")
    assert piece(page, text="calm piano") == calm
    assert piece(page) != calm


def test_what_a_text_says_is_kept_where_it_is_wished_for(page: Visitor) -> None:
    strict = piece(page, text="a waltz", strict=True)
    assert {tuple(bar["metre"]) for bar in strict["bars"]} == {METRES[SAID.metre]}


def test_lines_with_bars_are_sections_and_say_how_many_bars_there_are(page: Visitor) -> None:
    wish = {**SMALL, "bars": None, "text": "0-0: calm piano\n1-2: full rock band"}
    begin, *_ = page.post("/api/write", wish).events
    assert begin["bars"] == 3


def test_a_text_that_wants_more_bars_than_the_page_allows_is_refused(page: Visitor) -> None:
    wish = {**SMALL, "bars": None, "text": "0-99: calm piano"}
    [refused] = page.post("/api/write", wish).events
    assert refused["code"] == "too_many_bars" and refused["values"] == {"most": 8}


def test_a_bridge_of_another_model_is_refused_before_anybody_listens(
    run_folder: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    bridge = write_run(tmp_path, encoder, "0" * 64)
    with pytest.raises(CheckpointError):
        load_composer(PageConfig(checkpoint=run_folder, bridge=bridge, device="cpu"))
