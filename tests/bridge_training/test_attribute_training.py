"""Training of the attribute heads: what captions teach them, and that they learn it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from meloformer.bridge.attribute_heads import (
    GATES,
    NUM_INSTRUMENTS,
    NUM_VALUES,
    AttributeHeads,
    AttributeHeadsConfig,
    HeadLogits,
)
from meloformer.bridge.text_encoder import TextStates
from meloformer.bridge_training.attribute_sentences import random_sentences
from meloformer.bridge_training.attribute_training import (
    NOT_SAID,
    HeadTargets,
    HeadTraining,
    heads_loss,
    score_heads,
    shuffled_batches,
    train_heads,
)
from meloformer.errors import TrainingError

WIDTH = 48
CONFIG = AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint="f" * 64, width=64)
ATTRIBUTES = {
    "metre_index": 12,
    "tempo_index": 40,
    "key_index": 16,
    "length_bin": 5,
    "density_bin": 4,
    "has_drums": True,
    "instruments": [0, 1, 34],
}


def targets_of(mentions: Sequence[Any], **other: Any) -> HeadTargets:
    return HeadTargets.of([{**ATTRIBUTES, **other}], [mentions])


def open_gates(targets: HeadTargets) -> set[str]:
    return {name for name, is_said in zip(GATES, targets.gates_NA[0], strict=True) if is_said}


def named(targets: HeadTargets) -> list[int]:
    return targets.instruments_NI[0].nonzero().flatten().tolist()


def test_only_what_a_caption_says_has_a_value() -> None:
    targets = targets_of(["tempo", "key", "mood"])
    assert open_gates(targets) == {"tempo", "key"}
    found = {name: int(value[0]) for name, value in targets.values.items()}
    assert found == {**dict.fromkeys(NUM_VALUES, NOT_SAID), "tempo": 40, "key": 16}
    assert named(targets) == []


def test_all_instruments_say_whether_there_are_drums() -> None:
    targets = targets_of(["instruments"])
    assert open_gates(targets) == {"instruments", "all_instruments", "drums"}
    assert named(targets) == [0, 1, 34] and targets.values["drums"].tolist() == [1]
    without = targets_of(["instruments"], instruments=[1, 34], has_drums=False)
    assert open_gates(without) == {"instruments", "all_instruments", "drums"}
    assert named(without) == [1, 34] and without.values["drums"].tolist() == [0]


def test_some_instruments_leave_the_others_and_the_drums_free() -> None:
    targets = targets_of([{"instruments": [1]}])
    assert open_gates(targets) == {"instruments"}
    assert named(targets) == [1] and targets.values["drums"].tolist() == [NOT_SAID]


def test_drums_are_named_where_they_play_and_denied_where_not() -> None:
    targets = targets_of(["drums"])
    assert open_gates(targets) == {"drums", "instruments"} and named(targets) == [0]
    without = targets_of(["drums"], has_drums=False)
    assert open_gates(without) == {"drums"} and named(without) == []


def test_what_is_not_said_teaches_its_value_nothing() -> None:
    targets = targets_of(["key"])
    logits = HeadLogits(
        torch.zeros(1, len(GATES)),
        {name: torch.zeros(1, n, requires_grad=True) for name, n in NUM_VALUES.items()},
        torch.zeros(1, NUM_INSTRUMENTS),
    )
    heads_loss(logits, targets).backward()
    assert {name for name, value in logits.values.items() if value.grad is not None} == {"key"}


class SpokenStates:
    """States of texts in a language of vectors: a word for every value, and words between them.

    A word that names a value stands at any place, so the heads have to find it.
    """

    def __init__(self, targets: HeadTargets, seed: int) -> None:
        words = torch.Generator().manual_seed(0)
        tables = {
            name: torch.randn(count, WIDTH, generator=words) for name, count in NUM_VALUES.items()
        }
        names_IW = torch.randn(NUM_INSTRUMENTS, WIDTH, generator=words)
        every_W = torch.randn(WIDTH, generator=words)
        fillers_NW = torch.randn(20, WIDTH, generator=words)
        places = torch.Generator().manual_seed(seed)
        self.rows = []
        for row in range(len(targets)):
            said = [tables[n][v[row]] for n, v in targets.values.items() if v[row] != NOT_SAID]
            said += list(names_IW[targets.instruments_NI[row].bool()])
            said += [every_W] if targets.gates_NA[row, GATES.index("all_instruments")] else []
            said += list(fillers_NW[torch.randint(20, (4,), generator=places)])
            states_LW = torch.stack(said)[torch.randperm(len(said), generator=places)]
            self.rows.append((states_LW, states_LW.mean(0)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(states_LW) for states_LW, _ in self.rows])

    def batch(self, indices: Sequence[int]) -> TextStates:
        return TextStates.of_rows([self.rows[index] for index in indices])


def spoken(count: int, seed: int) -> tuple[SpokenStates, HeadTargets]:
    """Texts that speak of a few values of each attribute, each at random or not at all."""
    draws = torch.Generator().manual_seed(seed)

    def draw(number: int) -> int:
        return int(torch.randint(number, (), generator=draws))

    attributes, mentions = [], []
    for _ in range(count):
        instruments = sorted({0, 1 + draw(4)} if draw(2) else {1 + draw(4), 5 + draw(4)})
        attributes.append(
            {
                "metre_index": draw(3),
                "tempo_index": 20 + draw(6),
                "key_index": draw(6),
                "length_bin": draw(4),
                "density_bin": draw(4),
                "has_drums": 0 in instruments,
                "instruments": instruments,
            }
        )
        subjects = ("metre", "tempo", "key", "length", "density", "drums", "instruments")
        mentions.append([name for name in subjects if draw(2)])
    targets = HeadTargets.of(attributes, mentions)
    return SpokenStates(targets, seed), targets


TRAINING = HeadTraining(epochs=6, batch_size=32, learning_rate=5e-3)


def test_heads_learn_what_is_said_and_that_nothing_is_said() -> None:
    heads = train_heads(*spoken(400, seed=1), CONFIG, TRAINING)
    scores = score_heads(heads, *spoken(200, seed=2))
    assert {f"gate_{name}" for name in GATES} < set(scores)
    # Untrained heads: half of the gates, a sixth of the keys, hardly a name. 129 names take more
    # steps than a test has.
    assert scores.pop("instruments_f1") > 0.5
    wrong = {name: score for name, score in scores.items() if not score > 0.75}
    assert not wrong


def test_batches_hold_every_text_once_and_texts_of_like_length() -> None:
    draws = np.random.default_rng(0)
    lengths_N = torch.from_numpy(draws.geometric(1 / 40, size=1000).clip(max=250))
    torch.manual_seed(0)
    batches = shuffled_batches(lengths_N, 32)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(1000))
    assert sorted(map(len, batches))[0] == 1000 % 32 and max(map(len, batches)) == 32

    def padded(batches: Sequence[torch.Tensor]) -> int:
        return sum(int(lengths_N[batch].max()) * len(batch) for batch in batches)

    assert padded(batches) < 1.3 * int(lengths_N.sum())
    assert padded(torch.randperm(1000).split(32)) > 3 * int(lengths_N.sum())
    # Another order in the next epoch, and no order by length.
    assert [batch.tolist() for batch in shuffled_batches(lengths_N, 32)] != [
        batch.tolist() for batch in batches
    ]
    longest = [int(lengths_N[batch].max()) for batch in batches]
    assert longest != sorted(longest)


def test_every_step_of_training_is_told() -> None:
    told: list[tuple[int, int]] = []
    short = HeadTraining(epochs=2, batch_size=32)
    train_heads(*spoken(70, seed=1), CONFIG, short, tell=lambda *counts: told.append(counts))
    assert told == [(step, 6) for step in range(1, 7)]


def test_the_same_seed_trains_the_same_heads_and_leaves_other_draws_alone() -> None:
    states, targets = spoken(64, seed=1)
    short = HeadTraining(epochs=1, batch_size=32)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = train_heads(states, targets, CONFIG, short)
    assert torch.equal(torch.rand(1), expected)
    second = train_heads(states, targets, CONFIG, short)
    assert all(
        torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items()
    )


def test_heads_that_know_nothing_score_low_and_what_nobody_says_scores_nothing() -> None:
    """The scores can fail: an untrained head is no better than chance."""
    torch.manual_seed(0)
    states, targets = spoken(100, seed=2)
    scores = score_heads(AttributeHeads(CONFIG).eval(), states, targets)
    assert scores["key"] < 0.5 and scores["instruments_f1"] < 0.5
    silent = HeadTargets.of([ATTRIBUTES], [[]])
    assert math.isnan(score_heads(AttributeHeads(CONFIG), SpokenStates(silent, 0), silent)["key"])


def test_texts_without_targets_are_refused() -> None:
    states, _ = spoken(4, seed=1)
    _, targets = spoken(3, seed=1)
    with pytest.raises(TrainingError, match="found 4 texts and 3 targets"):
        train_heads(states, targets, CONFIG)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_random_sentences_speak_of_everything_and_come_again_with_their_seed(language: str) -> None:
    sentences = list(random_sentences(300, language, seed=3))
    assert sentences == list(random_sentences(300, language, seed=3))
    assert sentences[0] != next(random_sentences(1, language, seed=4))
    assert len({sentence.text for sentence in sentences}) > 260
    targets = HeadTargets.of(
        [sentence.attributes for sentence in sentences],
        [sentence.mentions or [] for sentence in sentences],
    )
    # Every attribute is said by some and left free by others.
    shares = targets.gates_NA.mean(0)
    assert bool(((shares > 0.05) & (shares < 0.95)).all()), shares
    keys = targets.values["key"]
    assert set(keys[keys != NOT_SAID].tolist()) == set(range(24))
    assert int(targets.instruments_NI.any(0).sum()) > NUM_INSTRUMENTS * 0.8
