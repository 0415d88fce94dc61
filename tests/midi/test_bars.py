import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.errors import MidiError
from meloformer.midi.bars import SNAP_STEPS, lay_bars
from meloformer.midi.grid import DENOMINATORS, METRE_STEPS, METRES
from meloformer.midi.limits import MAX_BARS

Events = list[tuple[int, tuple[int, int]]]


def bars_of(events: Events, last_onset_steps: int) -> list[tuple[int, int]]:
    bar_metre, _ = lay_bars([e[0] for e in events], [e[1] for e in events], last_onset_steps)
    return [METRES[index] for index in bar_metre]


def counts_of(events: Events, last_onset_steps: int):
    return lay_bars([e[0] for e in events], [e[1] for e in events], last_onset_steps)[1]


def test_without_a_metre_bars_are_four_quarters():
    assert bars_of([], 0) == [(4, 4)]
    assert bars_of([], 96) == [(4, 4)] * 2


def test_before_the_first_metre_bars_are_four_quarters():
    assert bars_of([(192, (3, 4))], 192) == [(4, 4), (4, 4), (3, 4)]


def test_a_bar_ends_before_the_onset_on_its_line():
    assert len(bars_of([(0, (3, 4))], 71)) == 1
    assert len(bars_of([(0, (3, 4))], 72)) == 2


def test_six_eighths_stay_apart_from_three_quarters():
    assert bars_of([(0, (6, 8)), (144, (3, 4))], 250) == [(6, 8), (6, 8), (3, 4), (3, 4)]


def test_a_pick_up_bar_is_a_short_metre():
    assert bars_of([(0, (1, 8)), (12, (2, 4))], 100) == [(1, 8), (2, 4), (2, 4)]


def test_a_metre_in_mid_bar_cuts_the_bar_in_the_running_denominator():
    assert bars_of([(0, (12, 8)), (144 + 60, (4, 4))], 204) == [(12, 8), (5, 8), (4, 4)]
    assert counts_of([(0, (12, 8)), (144 + 60, (4, 4))], 204).bars_cut == 1


def test_a_cut_that_the_running_denominator_cannot_say_takes_the_smallest_that_can():
    assert bars_of([(0, (4, 4)), (36, (4, 4))], 36) == [(3, 8), (4, 4)]


def test_a_cut_of_a_length_without_metre_moves_the_bar_line_to_the_nearest_that_has_one():
    events: Events = [(0, (4, 4)), (50, (3, 4))]
    assert bars_of(events, 60) == [(17, 32), (3, 4)]
    assert counts_of(events, 60).bar_lines_moved == 1


@pytest.mark.parametrize("error", range(-SNAP_STEPS, SNAP_STEPS + 1))
def test_a_metre_beside_a_bar_line_means_the_bar_line(error: int):
    events: Events = [(0, (4, 4)), (96 + error, (3, 4))]
    assert bars_of(events, 96 + 80) == [(4, 4), (3, 4), (3, 4)]
    assert counts_of(events, 96 + 80).bars_cut == 0


def test_of_two_metres_at_one_line_the_last_counts():
    assert bars_of([(0, (4, 4)), (0, (3, 4)), (1, (2, 4))], 50) == [(2, 4), (2, 4)]


def test_a_repeated_metre_on_its_bar_line_changes_nothing():
    assert bars_of([(bar * 72, (3, 4)) for bar in range(5)], 72 * 5) == [(3, 4)] * 6


@pytest.mark.parametrize("num_beats", [4, 5, 6, 7, 8, 200])
def test_a_piece_of_one_quarter_bars_is_read_as_four_quarters(num_beats: int):
    last_onset = (num_beats - 1) * 24
    assert bars_of([(0, (1, 4))], last_onset) == [(4, 4)] * -(-num_beats // 4)
    assert counts_of([(0, (1, 4))], last_onset).false_metre_bars == num_beats


def test_three_bars_of_one_quarter_stay():
    assert bars_of([(0, (1, 4))], 48) == [(1, 4)] * 3


def test_what_a_run_of_one_quarter_bars_leaves_over_is_a_short_bar():
    events: Events = [(0, (1, 4)), (6 * 24, (3, 4))]
    assert bars_of(events, 6 * 24) == [(4, 4), (2, 4), (3, 4)]


def test_a_metre_longer_than_the_table_becomes_equal_bars_where_it_can():
    assert bars_of([(0, (24, 4))], 24 * 24 - 1) == [(12, 4), (12, 4)]
    assert counts_of([(0, (24, 4))], 24 * 24).bars_split == 2


def test_a_metre_without_equal_parts_becomes_longest_bars_and_the_remainder():
    assert bars_of([(0, (65, 4))], 65 * 24) == [(12, 4)] * 5 + [(5, 4)] + [(12, 4)]


def test_a_metre_may_change_inside_a_bar_that_was_split():
    events: Events = [(0, (65, 4)), (14 * 24, (3, 4))]
    assert bars_of(events, 14 * 24) == [(12, 4), (2, 4), (3, 4)]


def test_a_denominator_beyond_the_table_is_reduced_or_refused():
    assert bars_of([(0, (6, 64))], 9) == [(3, 32)] * 2
    with pytest.raises(MidiError, match="metre_off_grid"):
        bars_of([(0, (3, 64))], 0)


def test_more_bars_than_the_limit_are_refused():
    assert len(bars_of([], 96 * MAX_BARS - 1)) == MAX_BARS
    with pytest.raises(MidiError, match="too_long"):
        bars_of([], 96 * MAX_BARS)
    with pytest.raises(MidiError, match="too_long"):
        bars_of([(0, (1, 32))], 2**30)


metres = st.tuples(st.integers(1, 255), st.sampled_from(DENOMINATORS))
event_lists = st.lists(st.tuples(st.integers(0, 3000), metres), max_size=12).map(sorted)


@given(event_lists, st.integers(0, 3000))
def test_bars_end_with_the_one_that_holds_the_last_onset(events: Events, last_onset: int):
    bar_metre, _ = lay_bars([e[0] for e in events], [e[1] for e in events], last_onset)
    ends = np.cumsum(METRE_STEPS[bar_metre])
    assert ends[-1] > last_onset
    assert len(ends) == 1 or ends[-2] <= last_onset


@given(event_lists, st.integers(0, 3000))
def test_bars_written_as_metres_and_laid_again_are_the_same_bars(events: Events, last_onset: int):
    bars = bars_of(events, last_onset)
    starts = np.concatenate([[0], np.cumsum([METRE_STEPS[METRES.index(bar)] for bar in bars])])
    again = [(int(start), bar) for start, bar in zip(starts, bars, strict=False)]
    assert bars_of(again, last_onset) == bars
    changes = [e for i, e in enumerate(again) if i == 0 or again[i - 1][1] != e[1]]
    assert bars_of(changes, last_onset) == bars
