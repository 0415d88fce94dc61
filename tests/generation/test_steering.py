"""Sections of text and mixtures of pieces, bar by bar."""

import random
from itertools import pairwise

import pytest
import torch

from meloformer.errors import GenerationError
from meloformer.generation.steering import (
    Section,
    agreed,
    mixed,
    parse_course,
    parse_texts,
    section_weights,
)
from meloformer.tokens.attributes import Attributes


def random_sections(seed: int) -> list[Section]:
    """One to eight of them, each of one bar or more."""
    rng = random.Random(seed)
    edges = [0]
    for _ in range(rng.randint(1, 8)):
        edges.append(edges[-1] + rng.randint(1, rng.choice([2, 40])))
    return [Section(a, b, f"text {a}") for a, b in pairwise(edges)]


def test_plain_texts_are_a_piece_each_of_as_many_bars_as_asked_for() -> None:
    assert parse_texts(["calm", "at 12:30 - loud"], 24) == [
        [Section(0, 24, "calm")],
        [Section(0, 24, "at 12:30 - loud")],
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ["0-3: calm", "4-7: loud"],
        ["4-7: loud", "0-3: calm"],
        ["0-3：calm", "4-7：loud"],
        [" 0 - 3 :calm ", "4–7: loud"],
    ],
)
@pytest.mark.parametrize("num_bars", [None, 8])
def test_sections_are_one_piece_in_whichever_order_and_script(texts, num_bars) -> None:
    assert parse_texts(texts, num_bars) == [[Section(0, 4, "calm"), Section(4, 8, "loud")]]


def test_a_section_keeps_the_colons_and_lines_of_its_text() -> None:
    ((section,),) = parse_texts(["0-3: tempo: 4-4: slow\nand calm"], None)
    assert section == Section(0, 4, "tempo: 4-4: slow\nand calm")


@pytest.mark.parametrize(
    ("texts", "num_bars", "said"),
    [
        (["0-3: a", "5-7: b"], None, r"--text '5-7: \.\.\.'.*begins with bar 4"),
        (["0-3: a", "3-7: b"], None, r"--text '3-7: \.\.\.'.*begins with bar 4"),
        (["0-3: a", "0-3: b"], None, r"--text '0-3: \.\.\.'.*begins with bar 4"),
        (["1-3: a"], None, r"--text '1-3: \.\.\.'.*begins with bar 0"),
        (["0-3: a", "4-2: b"], None, r"--text '4-2: \.\.\.'.*ends no earlier"),
        (["0-3: a", "loud"], None, "--text 'loud' beside sections: allowed"),
        (["0-3:  "], None, "--text '0-3:': found an empty text"),
        (["0-3: a", "4-7: b"], 9, "--bars 9 with sections of 8 bars: allowed"),
    ],
)
def test_sections_that_make_no_piece_are_refused_in_one_line(texts, num_bars, said) -> None:
    with pytest.raises(GenerationError, match=said) as refusal:
        parse_texts(texts, num_bars)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("crossfade", [0, 1, 4, 7, 64])
def test_weights_of_a_bar_sum_to_one_and_none_is_negative(crossfade) -> None:
    for seed in range(20):
        sections = random_sections(seed)
        weights = section_weights(sections, crossfade)
        assert weights.shape == (len(sections), sections[-1].last)
        torch.testing.assert_close(weights.sum(0), torch.ones(sections[-1].last))
        assert (weights >= 0).all()


@pytest.mark.parametrize("crossfade", [2, 5, 9])
def test_bars_farther_from_a_border_than_half_a_fade_have_one_text(crossfade) -> None:
    for seed in range(10):
        sections = random_sections(seed)
        weights = section_weights(sections, crossfade)
        borders = [section.first for section in sections[1:]]
        for number, section in enumerate(sections):
            for bar in range(section.first, section.last):
                if all(abs(bar + 0.5 - border) >= crossfade / 2 for border in borders):
                    assert weights[number, bar] == 1


def test_no_fade_is_a_hard_cut() -> None:
    for seed in range(10):
        sections = random_sections(seed)
        weights = section_weights(sections, 0)
        for number, section in enumerate(sections):
            expected = torch.zeros(sections[-1].last)
            expected[section.first : section.last] = 1
            assert torch.equal(weights[number], expected)


def test_a_fade_is_symmetric_about_its_border() -> None:
    first, second = section_weights([Section(0, 10, "a"), Section(10, 20, "b")], 6)
    torch.testing.assert_close(first, second.flip(0))
    torch.testing.assert_close(first[7:13], torch.tensor([11, 9, 7, 5, 3, 1]) / 12)


def test_a_section_shorter_than_the_fade_is_still_heard_where_it_stands() -> None:
    weights = section_weights([Section(0, 8, "a"), Section(8, 9, "b"), Section(9, 16, "c")], 4)
    assert weights[1].tolist()[5:12] == [0, 0.125, 0.25, 0.25, 0.25, 0.125, 0]
    torch.testing.assert_close(weights.sum(0), torch.ones(16))


def test_a_course_goes_in_lines_through_its_points_and_stays_beyond_them() -> None:
    course = parse_course(" 4:1 , 2:0.5, 6:0 ", 9)
    assert course.tolist() == [0.5, 0.5, 0.5, 0.75, 1, 0.5, 0, 0, 0]
    assert parse_course("100:0.25", 3).tolist() == [0.25] * 3
    assert parse_course("0:0,64:1", 2).tolist() == [0, 1 / 64]


@pytest.mark.parametrize(
    "text", ["", "0", "0:", "0:1.5", "0:-1", "-1:0", "0:0;4:1", "0:0,4:x", "0:.", "0:1..0", "0:nan"]
)
def test_a_course_that_is_none_is_refused_with_what_was_found(text) -> None:
    with pytest.raises(GenerationError, match=r"--at .*found '.*allowed: bar:share pairs"):
        parse_course(text, 8)


def test_a_course_with_two_shares_of_a_bar_is_refused() -> None:
    with pytest.raises(GenerationError, match="found a bar twice"):
        parse_course("4:0,4:1", 8)


def test_a_mixture_is_the_first_piece_at_0_the_second_at_1_and_the_mean_between() -> None:
    first, second = torch.randn(6, 3), torch.randn(4, 3)
    whole = mixed(first, second, torch.tensor([0.0, 0.5, 0.25, 1.0]))
    assert torch.equal(whole[0], first[0]) and torch.equal(whole[3], second[3])
    torch.testing.assert_close(whole[1], (first[1] + second[1]) / 2)
    torch.testing.assert_close(whole[2], 0.75 * first[2] + 0.25 * second[2])


def test_a_mixture_longer_than_one_of_its_pieces_is_refused() -> None:
    with pytest.raises(GenerationError, match="--bars 5 of a mixture: the shorter piece has 4"):
        mixed(torch.zeros(6, 3), torch.zeros(4, 3), torch.zeros(5))


def test_texts_agree_on_what_all_of_them_say_alike() -> None:
    one = Attributes(metre=2, tempo=3, key=1, instruments=(1, 5))
    other = Attributes(metre=2, tempo=3, density=4, instruments=(1,))
    assert agreed([one, other]) == Attributes(metre=2, tempo=3)
    assert agreed([one]) == one
    assert agreed([one, one, Attributes()]) == Attributes()
