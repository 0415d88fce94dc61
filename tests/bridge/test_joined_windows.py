import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.bridge.joined_windows import fade_weights, join_windows
from meloformer.errors import ConfigError


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Windows as `summary_windows` cuts them: both ends grow, and no bar between is left out."""
    first, last = 0, draw(st.integers(1, 40))
    found = [(first, last)]
    for _ in range(draw(st.integers(0, 5))):
        first = draw(st.integers(first + 1, last))
        last = draw(st.integers(last + 1, last + 40))
        found.append((first, last))
    return found


@settings(max_examples=30)
@given(spans())
def test_weights_of_every_bar_are_positive_and_sum_to_one(cut: list[tuple[int, int]]) -> None:
    total = torch.zeros(cut[-1][1], dtype=torch.float64)
    for (first, last), weights in zip(cut, fade_weights(cut), strict=True):
        assert bool((weights > 0).all())
        total[first:last] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=30)
@given(spans())
def test_windows_of_one_piece_that_agree_join_to_it(cut: list[tuple[int, int]]) -> None:
    whole_SD = torch.randn(cut[-1][1], 3, generator=torch.Generator().manual_seed(0))
    joined_SD = join_windows([(first, last, whole_SD[first:last]) for first, last in cut])
    torch.testing.assert_close(joined_SD, whole_SD)


def test_the_fade_over_sixteen_bars_is_linear() -> None:
    one, other = torch.zeros(160, 1), torch.ones(100, 1)
    joined = join_windows([(0, 160, one), (144, 244, other)])[:, 0]
    assert joined[:144].eq(0).all() and joined[160:].eq(1).all()
    torch.testing.assert_close(joined[144:160], torch.arange(1, 17) / 17)


def test_a_piece_that_begins_late_keeps_its_bars() -> None:
    assert join_windows([(5, 7, torch.ones(2, 4))]).shape == (2, 4)


def test_a_bar_in_no_window_and_a_missing_summary_are_refused() -> None:
    with pytest.raises(ConfigError, match="bar 4 of the piece stands in no window"):
        join_windows([(0, 3, torch.ones(3, 1)), (4, 6, torch.ones(2, 1))])
    with pytest.raises(ConfigError, match="found 2 summaries, expected 3"):
        join_windows([(0, 3, torch.ones(2, 1))])
    with pytest.raises(ConfigError, match="no window"):
        join_windows([])
