"""The model in the box: what the package carries, and what it says where it carries none."""

import re
from pathlib import Path

import pytest
import torch

from meloformer.command_line import parse_flags
from meloformer.errors import CheckpointError
from meloformer.model import box
from meloformer.model.box import BOX, boxed_model, describe_boxed_model, has_boxed_model
from meloformer.model.config import MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_model, model_metadata, save_model
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.config import TrainConfig
from tests.layouts import tiny_config

LARGEST_BYTES = 15_000_000
CARD = (BOX / "README.md").read_text()
real = pytest.mark.skipif(not has_boxed_model(), reason="this checkout carries no weights")


def test_a_box_says_how_large_its_model_is_and_where_its_card_lies(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(box, "BOX", tmp_path)
    model = MuseFormer(tiny_config())
    save_model(tmp_path, model.config, model.state_dict(), {"tokenizer": fingerprint()})
    assert boxed_model() == tmp_path
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{millions:.1f} M parameters" in describe_boxed_model()
    assert str(tmp_path / "README.md") in describe_boxed_model()


def test_a_copy_without_weights_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(box, "BOX", tmp_path)
    assert not has_boxed_model()
    with pytest.raises(CheckpointError, match=r"no such file.*--checkpoint.*make train"):
        boxed_model()


def test_the_card_names_every_collection_its_licence_and_its_author() -> None:
    rows = [line for line in CARD.splitlines() if line.startswith("| [")]
    for collection, licence, author in (
        ("freedoom", "BSD-3-Clause", "Contributors to the Freedoom project"),
        ("easyrpg_rtp", "CC-BY-4.0", "Juan Manuel Nigretti"),
        ("openscore_quartets", "CC0-1.0", "OpenScore"),
        ("openscore_lieder", "CC0-1.0", "OpenScore"),
        ("js_fakes", "CC-BY-4.0", "Omar Peracha"),
    ):
        (row,) = [row for row in rows if f"[{collection}]" in row]
        assert licence in row and author in row
    assert len(rows) == 5


def command(recipe: str) -> list[list[str]]:
    """Flags of every line of the card that runs a recipe."""
    return [line.split()[1:] for line in re.findall(rf"{recipe}[^\n]*", CARD)]


def test_the_command_of_the_card_is_one_that_training_takes_on_shards_that_it_makes() -> None:
    (flags,) = command(r"launch/train\.py")
    config = parse_flags(TrainConfig, flags)
    made = [line[line.index("--output") + 1] for line in command(r"launch/shard_data\.py")]
    start = flags.index("--data") + 1
    assert flags[start : start + 5] == made
    assert config.model_size == "tiny" and not re.search(r"/(tmp|home|work)\b", CARD)


@real
def test_the_box_is_small_holds_nothing_that_runs_and_fits_the_vocabulary() -> None:
    files = {path.name: path.stat().st_size for path in BOX.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert sum(files.values()) <= LARGEST_BYTES
    assert model_metadata(BOX)["tokenizer"] == fingerprint()
    model = load_model(boxed_model())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@real
def test_the_card_tells_of_the_model_beside_it() -> None:
    assert not re.search(r"\{\w+\}", CARD)
    (flags,) = command(r"launch/train\.py")
    trained, found = parse_flags(TrainConfig, flags), MuseFormerConfig.load(BOX)
    assert found.max_seq_len == trained.max_seq_len and found.rule == trained.attention
    assert found.fill_rate == trained.fill_rate
    assert f"{found.num_layers} layers, width {found.width}, {found.num_heads} heads" in CARD
    assert f"{trained.max_steps} steps" in CARD.replace("\n", " ").replace(",", "")
