"""Which rows form a step, with which texts, on which rank."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.bridge.targets import SummaryTargets
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_states import TextStatesFolder, write_states
from meloformer.bridge_training.loop import read_step
from meloformer.bridge_training.pairs import Pairs, check_matched, join
from meloformer.bridge_training.texts import caption_texts
from meloformer.errors import ConfigError
from tests.bridge_training.pair_folders import (
    NUM_PIECES,
    WORDS,
    kind_of,
    windows_of,
    write_captions,
)


@pytest.fixture(scope="module")
def states(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TextStatesFolder:
    encoder = TextEncoder.load(data / "encoder")
    folder = tmp_path_factory.mktemp("states") / "states"
    return write_states(encoder, caption_texts(data / "captions.jsonl"), folder)


@pytest.fixture(scope="module")
def targets(data: Path) -> SummaryTargets:
    return SummaryTargets.open(data / "targets")


@pytest.fixture(scope="module")
def train(states: TextStatesFolder, targets: SummaryTargets) -> Pairs:
    return join("train", states, targets.split("train"), seed=3)


def test_every_text_is_joined_with_the_window_that_it_describes(train: Pairs) -> None:
    assert len(train) == NUM_PIECES["train"]
    for row in train.rows_of_step(1, 48):
        text = train.states.texts[row.text]
        assert text.language is not None
        assert text.text == WORDS[text.language][kind_of(train.window(row))]
        assert text.split == "train"


def test_the_longest_window_is_that_of_those_that_have_a_text(train: Pairs) -> None:
    assert train.longest_bars == max(window.bars for window in windows_of("train")) == 9
    short = [pair for pair in range(len(train)) if train.targets.windows[pair].bars < 6]
    some = replace(
        train,
        windows=[train.windows[pair] for pair in short],
        texts=[train.texts[pair] for pair in short],
    )
    assert some.longest_bars == 5


def test_an_epoch_takes_every_window_once_also_where_steps_cross_its_end(train: Pairs) -> None:
    # 24 windows, 10 rows a step: two epochs end within a step.
    rows = [row.pair for step in range(1, 6) for row in train.rows_of_step(step, 10)]
    assert Counter(rows[:24]) == Counter(rows[24:48]) == Counter(range(24))
    assert rows[:24] != rows[24:48]


def test_a_window_gets_another_text_in_some_epochs_and_another_seed_in_all(train: Pairs) -> None:
    rows = train.rows_of_step(1, 24 * 20)
    of_first = [row for row in rows if row.pair == 0]
    assert len({row.text for row in of_first}) == 2
    assert len({row.seed for row in rows}) == len(rows)
    assert all(0 <= row.seed < 2**63 for row in rows)


def test_the_same_step_has_the_same_rows_and_another_seed_others(
    train: Pairs, states: TextStatesFolder, targets: SummaryTargets
) -> None:
    again = join("train", states, targets.split("train"), seed=3)
    other = join("train", states, targets.split("train"), seed=4)
    assert again.rows_of_step(7, 8) == train.rows_of_step(7, 8)
    assert other.rows_of_step(7, 8) != train.rows_of_step(7, 8)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_the_rows_of_one_process(train: Pairs, world_size: int) -> None:
    whole, num_bars = read_step(train, 2, 8, 0, 1)
    parts = [read_step(train, 2, 8, rank, world_size) for rank in range(world_size)]
    assert whole.num_bars == num_bars == int(whole.mask_BS.sum())
    assert sum(int(part.mask_BS.sum()) for part, _ in parts) == num_bars
    assert [seed for part, _ in parts for seed in part.row_seeds] == list(whole.row_seeds)
    assert [piece for part, _ in parts for piece in part.pieces] == list(whole.pieces)
    # The mean over ranks of what each averages is the mean over all bars.
    means = [part.mean_over_bars(part.summaries_BSD.square().mean(-1)) for part, _ in parts]
    torch.testing.assert_close(
        torch.stack(means).mean(), whole.mean_over_bars(whole.summaries_BSD.square().mean(-1))
    )


def test_a_validation_takes_every_window_once_and_always_the_same_text(
    states: TextStatesFolder, targets: SummaryTargets
) -> None:
    valid = join("valid", states, targets.split("valid"), seed=3)
    rows = valid.rows_in_order()
    assert [row.pair for row in rows] == list(range(NUM_PIECES["valid"]))
    assert rows == valid.rows_in_order()
    assert {states.texts[row.text].language for row in rows} == {"en", "zh"}


def test_only_texts_of_the_asked_languages_are_taken(
    states: TextStatesFolder, targets: SummaryTargets
) -> None:
    chinese = join("train", states, targets.split("train"), seed=0, languages=["zh"])
    assert {states.texts[row.text].language for row in chinese.rows_of_step(1, 48)} == {"zh"}
    none = join("train", states, targets.split("train"), seed=0, languages=["fr"])
    with pytest.raises(ConfigError, match=r"texts in fr for 0 of the 24 training windows"):
        check_matched(none, "--captions c.jsonl", "targets", ["fr"])


def test_captions_of_other_windows_are_refused(
    data: Path, targets: SummaryTargets, tmp_path: Path
) -> None:
    captions = write_captions(tmp_path / "captions.jsonl", first_bar=1)
    encoder = TextEncoder.load(data / "encoder")
    states = write_states(encoder, caption_texts(captions), tmp_path / "states")
    pairs = join("train", states, targets.split("train"), seed=0)
    with pytest.raises(ConfigError, match=r"for 0 of the 24 .* allowed: at least 50%"):
        check_matched(pairs, "--captions c.jsonl", "targets", ())


def test_half_of_the_windows_with_a_text_are_enough_and_one_less_is_not(
    data: Path, targets: SummaryTargets, tmp_path: Path
) -> None:
    keys = [window.key for window in windows_of("train")]
    encoder = TextEncoder.load(data / "encoder")
    for number, is_enough in ((12, True), (11, False)):
        texts = [
            text
            for text in caption_texts(data / "captions.jsonl")
            if text.split == "train" and text.key in keys[:number]
        ]
        states = write_states(encoder, texts, tmp_path / f"states-{number}")
        pairs = join("train", states, targets.split("train"), seed=0)
        if is_enough:
            check_matched(pairs, "captions", "targets", ())
            continue
        with pytest.raises(ConfigError, match="for 11 of the 24"):
            check_matched(pairs, "captions", "targets", ())
