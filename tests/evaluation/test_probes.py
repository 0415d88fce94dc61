"""Probes: facts of bars, scores of answers, and what is learned from where."""

import numpy as np
import pytest
import torch

from meloformer.bridge.extraction import WindowSettings, windows_of_piece
from meloformer.bridge.summarising import bare_window, count_bars, row_batches
from meloformer.errors import ConfigError
from meloformer.evaluation.bar_facts import COLUMNS, NUM_COLUMNS, QUESTIONS, Question, bar_facts
from meloformer.evaluation.probe_scores import (
    Score,
    above_chance,
    constant_answers,
    scored,
    value_of,
)
from meloformer.evaluation.probes import (
    ProbeSettings,
    Stream,
    _pieces,
    num_pieces,
    probe,
    vectors_of_bars,
)
from meloformer.evaluation.ridge import Sums
from meloformer.midi.grid import STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.harmony import bar_chords
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts
from tests.bridge.bases import random_base
from tests.layouts import layout_of

SMALL = {"width": 32, "ffn_width": 32}
WINDOWS = WindowSettings(max_seq_len=256)
OF_NAME = {question.name: question for question in QUESTIONS}


@pytest.fixture(scope="module")
def shards(chorale_shards) -> ShardFolder:
    return ShardFolder.open(chorale_shards)


def test_facts_of_bars_are_those_of_the_decoded_music(shards) -> None:
    index = shards.split("train")
    for piece in range(3):
        ids = index.read(piece)
        window = bare_window(ids, bar_starts(ids), 2, 7)
        music = decode(window)
        facts = {name: bar_facts(window, 14)[:, span] for name, span in COLUMNS.items()}
        assert facts["chord"].argmax(1).tolist() == bar_chords(decode(ids))[2:7].tolist()
        assert facts["key"].argmax(1).tolist() == [14] * 5
        np.testing.assert_allclose(
            facts["tempo"][:, 0], np.log2(TEMPOS_BPM[music.bar_tempo]), rtol=1e-6
        )
        quarters = np.diff(music.bar_start_steps) / STEPS_PER_QUARTER
        for bar in range(5):
            here = music.bar == bar
            assert set(np.flatnonzero(facts["instruments"][bar])) == set(music.instrument[here])
            assert 2 ** facts["density"][bar, 0] - 1 == pytest.approx(
                here.sum() / quarters[bar], rel=1e-5
            )


def test_a_piece_without_a_key_is_not_asked_for_one(shards) -> None:
    ids = shards.split("train").read(0)
    facts = bar_facts(ids, None)
    assert not facts[:, COLUMNS["key"]].any()
    assert value_of(OF_NAME["key"], np.ones_like(facts), facts) is None


@pytest.mark.parametrize("penalty", [1e-5, 1.0])
def test_ridge_solves_what_it_says(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * [1, 10, 0.1, 1, 1, 0] + 5
    y = x[:, :1] - 3 * x[:, 1:2] + rng.normal(size=(200, 2))
    used = (x[:, :5] - x[:, :5].mean(0)) / x[:, :5].std(0)
    weights = np.linalg.solve(
        used.T @ used / 200 + penalty * np.eye(5), used.T @ (y - y.mean(0)) / 200
    )
    ridge = (Sums.of(x[:50], y[:50]) + Sums.of(x[50:], y[50:])).fit()
    np.testing.assert_allclose(ridge.predict(x, penalty), used @ weights + y.mean(0), atol=1e-6)
    moved = x + np.array([0, 0, 0, 0, 0, 100])
    np.testing.assert_allclose(ridge.predict(moved, penalty), ridge.predict(x, penalty), atol=1e-9)


def facts_with(name: str, rows: list[list[float]]) -> np.ndarray:
    facts = np.zeros((len(rows), NUM_COLUMNS))
    span = COLUMNS[name]
    facts[:, span.start : span.start + len(rows[0])] = rows
    return facts


def test_scores_are_those_of_pencil_and_paper() -> None:
    piece = np.array([0, 0, 1])
    right = facts_with("key", [[1, 0], [0, 1], [0, 1]])
    said = facts_with("key", [[0.2, 0.1], [0.9, 0.1], [0, 0.3]])
    assert scored(OF_NAME["key"], said, right, piece).value == pytest.approx(2 / 3)
    right = facts_with("instruments", [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    said = facts_with("instruments", [[0.6, 0.4, 0.7], [0.1, 0.9, 0], [0, 0, 0.8]])
    assert scored(OF_NAME["instruments"], said, right, piece).value == pytest.approx(6 / 8)
    right = facts_with("tempo", [[1.0], [2.0], [6.0]])
    said = facts_with("tempo", [[2.0], [2.0], [5.0]])
    assert scored(OF_NAME["tempo"], said, right, piece).value == pytest.approx(1 - 2 / 14)
    assert scored(OF_NAME["tempo"], said, np.full_like(right, 7), piece).value is None


def test_an_interval_holds_the_score_and_knows_that_bars_of_a_piece_are_alike() -> None:
    rng = np.random.default_rng(1)
    right_piece = rng.random(40) < 0.6
    facts = facts_with("key", [[1.0, 0.0]] * 400)
    said = facts_with("key", [[float(ok), 0.5] for ok in np.repeat(right_piece, 10)])
    of_pieces = scored(OF_NAME["key"], said, facts, np.repeat(np.arange(40), 10))
    of_bars = scored(OF_NAME["key"], said, facts, np.arange(400))
    assert of_pieces.low < of_pieces.value == of_bars.value < of_pieces.high
    width = {x: x.high - x.low for x in (of_pieces, of_bars)}
    assert width[of_pieces] == pytest.approx(width[of_bars] * 10**0.5, rel=0.2)


def test_chance_is_the_best_answer_that_looks_at_nothing() -> None:
    rng = np.random.default_rng(2)
    shares = np.array([0.9, 0.5, 0.3, 0.05])
    facts = facts_with("instruments", (rng.random((500, 4)) < shares).astype(float).tolist())
    answers = np.broadcast_to(constant_answers(facts), facts.shape)
    question = Question("instruments", "many", 129)
    best = max(
        value_of(
            question, np.broadcast_to(facts_with("instruments", [said])[0], facts.shape), facts
        )
        for said in np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T.tolist()
        if any(said)
    )
    assert value_of(question, answers, facts) == pytest.approx(best)
    numbers = facts_with("density", rng.normal(size=(50, 1)).tolist())
    mean = np.broadcast_to(constant_answers(numbers), numbers.shape)
    assert value_of(OF_NAME["density"], mean, numbers) == pytest.approx(0)


def test_the_way_from_chance_passes_over_questions_with_one_answer() -> None:
    scores = {"key": Score(0.6, 0, 1), "tempo": Score(None, None, None), "chord": Score(0.9, 0, 1)}
    chance = {"key": Score(0.2, 0, 1), "tempo": Score(None, None, None), "chord": Score(0.97, 0, 1)}
    assert above_chance(scores, chance) == pytest.approx(0.5)


@pytest.mark.parametrize("rows", ["alone", "packed"])
def test_vectors_of_bars_are_their_summaries_and_the_means_of_their_tokens(shards, rows) -> None:
    model, index = random_base(**SMALL), shards.split("train")
    ids = [
        windows_of_piece(index, n, WindowSettings(max_bars=3, max_seq_len=200, overlap=0)).ids[1]
        for n in range(3)
    ]
    for batch in row_batches(model, ids, 3, rows=rows):
        vectors = vectors_of_bars(model, batch)
        for number, row, first, last in batch.slots:
            layout, window = layout_of(ids[number]), torch.from_numpy(ids[number].astype(int))[None]
            assert last - first == count_bars(ids[number])
            with torch.no_grad():
                plan = build_plan(layout, RULES["halves"])
                for layer in (1, 3):
                    expected = model.summaries(window, layout, plan, layer)[0, : last - first]
                    found = vectors[Stream(layer, "summaries")][row, first:last]
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
                embedded = model.embed(window, layout.onset_BT, layout.instrument_BT)[0]
            for bar in range(last - first):
                mean = embedded[layout.bar_BT[0] == bar].mean(0)
                found = vectors[Stream(0, "tokens")][row, first + bar]
                torch.testing.assert_close(found, mean, atol=1e-5, rtol=0)
    assert len(vectors) == 1 + 2 * model.config.num_layers
    assert not any(layer._forward_hooks for layer in model.layers)


def test_probes_read_the_chord_off_embeddings_and_are_scored_on_unseen_pieces(shards) -> None:
    settings = ProbeSettings(train_pieces=20, test_pieces=3)
    done: list[int] = []
    table = probe(random_base(num_layers=2), shards, WINDOWS, settings, on_pieces=done.append)
    assert sum(done) == num_pieces(shards, settings) == sum(table.num_pieces) == 26
    scores = table.scores[Stream(0, "tokens")]["chord"]
    # The bar token says its chord, and its embedding is a part of the mean.
    assert scores.low > table.chance["chord"].high
    assert set(table.to_json()) == {"pieces", "bars", "chance", "probes"}
    learning, choosing, testing = _pieces(shards, settings)
    keys = [
        {piece.split.key(piece.number) for piece in part} for part in (learning, choosing, testing)
    ]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert [len(part) for part in keys] == [16, 4, 6]


def test_too_few_pieces_are_refused(shards) -> None:
    with pytest.raises(ConfigError, match="found 3 pieces of train"):
        probe(random_base(), shards, WindowSettings(), ProbeSettings(train_pieces=3))
    with pytest.raises(ConfigError, match="allowed 2 or more"):
        ProbeSettings(test_pieces=1)
