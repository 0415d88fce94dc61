"""Which model plays: the one that is named, else the newest run, else the one in the box."""

import os
from pathlib import Path

import pytest

from meloformer.bridge.base_folder import find_player
from meloformer.errors import CheckpointError, TokenError
from meloformer.model import box
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.layouts import tiny_config


def put_model(folder: Path, tokenizer: str | None = None) -> Path:
    model = MuseFormer(tiny_config(num_layers=1))
    metadata = {"tokenizer": tokenizer or fingerprint()}
    save_model(folder, model.config, model.state_dict(), metadata)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and an empty box beside it."""
    here, empty_box = tmp_path / "here", tmp_path / "box"
    here.mkdir()
    empty_box.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(box, "BOX", empty_box)
    return tmp_path


def test_the_named_model_comes_before_the_newest_run_and_that_before_the_box(place: Path) -> None:
    put_model(place / "box")
    folder, which = find_player(None, "raw")
    assert folder == place / "box"
    assert which.startswith("no --checkpoint and no model in runs/: the model in the box, ")
    assert "M parameters, see its card" in which

    Path("runs/empty").mkdir(parents=True)  # a run that has no model yet is none
    assert find_player(None, "raw")[0] == place / "box"

    for age, name in enumerate(("new", "old")):
        put_model(Path("runs") / name / "model")
        os.utime(Path("runs") / name, (1e9 - age, 1e9 - age))
    folder, which = find_player(None, "raw")
    assert folder == Path("runs/new/model")
    assert which == f"no --checkpoint: {Path('runs/new')}, the newest run"

    named = put_model(place / "named")
    assert find_player(named, "raw") == (named, "")


def test_without_any_the_refusal_is_that_of_a_missing_run(place: Path) -> None:
    with pytest.raises(CheckpointError, match="no run with a model; name one with --checkpoint"):
        find_player(None, "raw")


def test_the_box_has_one_set_of_weights_and_one_vocabulary(place: Path) -> None:
    put_model(place / "box")
    with pytest.raises(CheckpointError, match="found no averaged weights"):
        find_player(None, "ema")
    put_model(place / "box", "0" * 64)
    with pytest.raises(TokenError, match="another vocabulary"):
        find_player(None, "raw")
