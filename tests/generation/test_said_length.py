"""Bars of a text: the number that stands there, or what its heads have heard."""

import pytest

from meloformer.generation.said_length import said_bars
from meloformer.tokens.vocabulary import BLOCK_SIZES, Kind, length_bin

BIN_OF_32 = int(length_bin(32))


@pytest.mark.parametrize(
    "text",
    ["A piece of 32 bars.", "a 32-bar blues", "32 Bars, slow", "32小节的华尔兹", "３２个小节"],
)
def test_a_number_of_bars_is_taken_as_it_stands(text: str) -> None:
    assert said_bars(text, BIN_OF_32) == 32


def test_a_number_beside_the_bin_that_was_heard_counts_and_one_far_from_it_does_not() -> None:
    assert said_bars("a piece of 36 bars", BIN_OF_32) == 36
    assert said_bars("a piece of 2 bars", BIN_OF_32) == 32
    assert said_bars("a piece of 0 bars", BIN_OF_32) == 32
    assert said_bars("drums for 2 bars, 30 bars in all", BIN_OF_32) == 30


@pytest.mark.parametrize("text", ["long, at 32 BPM", "32 barrels", "in 3/4", ""])
def test_other_numbers_are_no_bars(text: str) -> None:
    assert said_bars(text, 4) == 8


def test_every_bin_has_bars_of_its_own_and_only_the_open_one_borrows() -> None:
    bins = range(BLOCK_SIZES[Kind.LENGTH])
    found = [said_bars("so many bars", index) for index in bins]
    assert [int(length_bin(bars)) for bars in found if bars] == [*bins[:-1], bins[-2]]


@pytest.mark.parametrize(("text", "bars"), [("a short piece", 8), ("two bars", 2), ("两小节", 2)])
def test_what_is_merely_called_short_is_no_bar_or_two(text: str, bars: int) -> None:
    assert said_bars(text, int(length_bin(2))) == bars


def test_what_says_nothing_of_its_length_has_no_bars() -> None:
    assert said_bars("a piece of 32 bars", None) is None
