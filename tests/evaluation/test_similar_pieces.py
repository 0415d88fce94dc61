"""Vectors of pieces, and whether a piece that was changed finds the one that it was made of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError, MidiError
from meloformer.evaluation.piece_edits import track_dropped, transposed
from meloformer.evaluation.piece_vectors import (
    check_has_layer,
    save_vector,
    vector_of_file,
    vector_of_ids,
)
from meloformer.evaluation.similar_pieces import cosines, midi_files, rank
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.attention import build_plan
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import model_fingerprint
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.hid import decode, encode
from tests.bridge.bases import random_base
from tests.hub.folders import a_piece, write_model
from tests.launch.recipes import load_recipe
from tests.layouts import layout_of


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return random_base(width=32, ffn_width=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: MuseFormer) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model", model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pieces, one of them below; text beside them, and a file that is no MIDI."""
    place = tmp_path / "music"
    (place / "below").mkdir(parents=True)
    for seed in range(6):
        name = f"below/{seed}.MID" if seed == 5 else f"{seed}.mid"
        write_midi(to_piece(a_piece(3, seed)), place / name)
    (place / "notes.txt").write_text("no music")
    (place / "bad.mid").write_bytes(b"MThd but no more")
    return place


def recipe(name: str, config: str, *arguments: object) -> int:
    module = load_recipe(name)
    with pytest.raises(SystemExit) as ended:
        run_recipe(module.main, getattr(module, config), list(map(str, arguments)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_vector_is_the_mean_over_bars_of_the_summaries_after_the_layer(model) -> None:
    bare = encode(a_piece(3), Attributes()).astype(np.int64)
    layout = layout_of(bare)
    plan = build_plan(layout, rule_of(model.config.rule))
    with torch.no_grad():
        expected = model.summaries(torch.from_numpy(bare)[None], layout, plan, INJECTION_LAYER)
    found = vector_of_ids(model, encode(a_piece(3)))
    assert np.allclose(found, expected[0, :3].mean(0).numpy(), atol=1e-5)


def test_changed_pieces_find_their_originals_far_above_chance(model, chorale_shards) -> None:
    """Of ten files one is right: chance finds 2 of 20 first, and 8 or more once in 2,000 times."""
    pieces = ShardFolder.open(chorale_shards).split("train")
    originals = [to_piece(decode(pieces.read(number))) for number in range(10)]

    def vector(piece: Piece) -> np.ndarray:
        return vector_of_ids(model, encode(quantise(piece)))

    vectors = np.stack([vector(piece) for piece in originals])
    rng = np.random.default_rng(0)
    num_first = 0
    for number, piece in enumerate(originals):
        for edit in (transposed, track_dropped):
            edited = edit(piece, rng)
            assert edited is not None
            num_first += int(cosines(vector(edited), vectors).argmax()) == number
    assert num_first >= 8


def test_the_piece_itself_is_first_and_files_that_cannot_be_read_are_named(model, folder) -> None:
    asked = vector_of_file(model, "f", folder / "2.mid")
    files = midi_files(folder)
    ranking = rank(asked.vector, folder, files, lambda p: vector_of_file(model, "f", p).vector)
    assert ranking.files[0] == (folder / "2.mid", pytest.approx(1.0))
    assert len(ranking.files) == 6
    ((bad, reason),) = ranking.skipped
    assert bad == folder / "bad.mid" and "unreadable" in reason
    values = [cosine for _, cosine in ranking.files]
    assert values == sorted(values, reverse=True) and min(values) < 0


def test_cosines_are_those_of_the_definition_after_the_mean_is_gone() -> None:
    rng = np.random.default_rng(0)
    one, others = rng.normal(size=5) + 100, rng.normal(size=(4, 5)) + 100
    mean = [sum(row[i] for row in others) / 4 for i in range(5)]
    for found, row in zip(cosines(one, others), others, strict=True):
        a, b = ([vector[i] - mean[i] for i in range(5)] for vector in (one, row))
        dot, of_a, of_b = (sum(x[i] * y[i] for i in range(5)) for x, y in ((a, b), (a, a), (b, b)))
        assert found == pytest.approx(dot / (of_a * of_b) ** 0.5)
    assert cosines(np.ones(2), np.ones((3, 2))).tolist() == [0, 0, 0]


def test_vectors_carry_layer_weights_and_sum_of_the_file(model, folder, tmp_path) -> None:
    found = vector_of_file(model, "f" * 64, folder / "0.mid")
    (written,) = save_vector(found, tmp_path / "a.json")
    facts = json.loads(written.read_text())
    assert np.array_equal(np.array(facts.pop("vector"), np.float32), found.vector)
    for name in ("b.npy", "c.NPY"):
        array, beside = save_vector(found, tmp_path / name)
        assert np.array_equal(np.load(array), found.vector)
        assert json.loads(beside.read_text()) == facts
    assert (facts["layer"], facts["model"], facts["num_bars"]) == (INJECTION_LAYER, "f" * 64, 3)
    assert facts["file"] == "0.mid" and facts["width"] == 32


def test_a_bar_that_no_row_holds_is_a_file_that_does_not_fit(folder) -> None:
    short = random_base(width=32, ffn_width=32, max_seq_len=16)
    with pytest.raises(MidiError, match="does_not_fit"):
        vector_of_file(short, "f", folder / "0.mid")


def test_models_without_such_summaries_are_refused() -> None:
    for changes in ({"num_layers": 3}, {"summaries": False, "rule": "full"}):
        with pytest.raises(ConfigError, match="allowed: one with summaries"):
            check_has_layer(random_base(**changes))


def test_embed_writes_what_the_module_finds(checkpoint, model, folder, tmp_path, capsys) -> None:
    output = tmp_path / "v.npy"
    arguments = (folder / "1.mid", "--checkpoint", checkpoint, "--output", output)
    assert recipe("embed.py", "EmbedConfig", *arguments) == 0
    assert "mean of 3 bars after layer 3" in " ".join(capsys.readouterr().out.split())
    expected = vector_of_file(model, model_fingerprint(checkpoint), folder / "1.mid")
    assert np.array_equal(np.load(output), expected.vector)
    assert json.loads(output.with_suffix(".json").read_text()) == expected.facts()


def test_embed_writes_over_its_own_vectors_and_over_nothing_else(
    checkpoint, folder, tmp_path, capsys
) -> None:
    song = tmp_path / "song.mid"
    song.write_bytes((folder / "1.mid").read_bytes())

    def embed(*flags: object) -> int:
        return recipe("embed.py", "EmbedConfig", song, "--checkpoint", checkpoint, *flags)

    beside = song.with_suffix(".json")
    for mine in ('{"title": "mine"}', "no JSON", "[1]"):
        beside.write_text(mine)
        for flags in ((), ("--output", tmp_path / "song.npy")):
            assert embed(*flags) == 2
            said = capsys.readouterr().err
            assert "found song.json, which is no vector" in said and "another --output" in said
        assert beside.read_text() == mine and not (tmp_path / "song.npy").exists()
    beside.unlink()
    (tmp_path / "song.npy").write_bytes(b"mine")
    assert embed("--output", tmp_path / "song.npy") == 2
    assert "found song.npy" in capsys.readouterr().err and not beside.exists()
    (tmp_path / "song.npy").unlink()
    assert embed() == embed() == embed("--output", tmp_path / "song.npy") == 0
    assert embed("--output", tmp_path / "song.npy") == 0, "its own are written again"


def test_similar_shows_a_table_and_counts_what_it_skips(checkpoint, folder, tmp_path, capsys):
    output = tmp_path / "r.json"
    arguments = (folder / "1.mid", folder, "--checkpoint", checkpoint, "--top", 2, "--json", output)
    assert recipe("similar.py", "SimilarConfig", *arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5 files, 1 skipped" in said and "bad.mid: unreadable" in said
    assert "mean over the folder's files" in said
    found = json.loads(output.read_text())
    assert len(found["files"]) == 5 and found["asked"]["layer"] == INJECTION_LAYER
    # The file itself is not like itself: it is left out.
    assert str(folder / "1.mid") not in {one["file"] for one in found["files"]}


def test_names_of_files_are_no_markup(checkpoint, tmp_path: Path, capsys) -> None:
    for name in ("[b]one.mid", "[x[y.mid", "歌 [red].mid"):
        write_midi(to_piece(a_piece(1)), tmp_path / name)
    arguments = (tmp_path / "[x[y.mid", tmp_path, "--checkpoint", checkpoint)
    assert recipe("similar.py", "SimilarConfig", *arguments) == 0
    said = capsys.readouterr().out
    assert "[b]one.mid" in said and "歌 [red].mid" in said


def test_wishes_that_cannot_be_end_in_one_line(checkpoint, folder, tmp_path, capsys) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    write_midi(to_piece(a_piece(1)), lone / "a.mid")
    (lone / "b.mid").write_bytes(b"")
    given, song = ("--checkpoint", checkpoint), folder / "0.mid"
    for name, config, arguments, message in (
        ("embed.py", "EmbedConfig", (song, "--output", tmp_path / "a.csv"), ".json or .npy"),
        ("embed.py", "EmbedConfig", (folder / "bad.mid",), "bad.mid: unreadable"),
        ("similar.py", "SimilarConfig", (folder / "bad.mid", folder), "bad.mid: unreadable"),
        ("similar.py", "SimilarConfig", (song, tmp_path / "absent"), "no such folder"),
        ("similar.py", "SimilarConfig", (song, lone), "found 1 MIDI files, and 1 that cannot"),
        ("similar.py", "SimilarConfig", (song, folder, "--top", 0), "--top 0"),
    ):
        assert recipe(name, config, *arguments, *given) == 2, name
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and message in said[0]
