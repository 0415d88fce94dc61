"""Sets beside a reference: who is apart from it, and a page that stays small."""

import re

import numpy as np
import pytest

from meloformer.evaluation.judged_pieces import PieceSet, UnreadFile, judge_piece
from meloformer.evaluation.statistics_judge import StatisticsFindings, is_apart, judge_sets
from meloformer.evaluation.statistics_page import _MOST_SOUND_BYTES, statistics_page
from meloformer.evaluation.statistics_report import statistics_table
from meloformer.evaluation.statistics_settings import StatisticsConfig
from tests.evaluation.test_statistics import BAR, note, piece

CONFIG = StatisticsConfig(distances=4, num_workers=1)


def some_set(name: str, seed: int, *, repeats: bool, low: int = 50) -> PieceSet:
    """Eight pieces of eight bars; each bar is the one before where they repeat."""
    random = np.random.default_rng(seed)
    pieces = []
    for number in range(8):
        bars = random.integers(low, low + 30, (8, 8))
        if repeats:
            bars[:] = bars[0]
        notes = [
            note(bar, 12 * place, int(pitch), 12)
            for bar, pitches in enumerate(bars)
            for place, pitch in enumerate(pitches)
        ]
        pieces.append(judge_piece(str(number), piece(*notes, note(7, 90, 40, 6)), None))
    return PieceSet(name=name, pieces=pieces, unread=[])


@pytest.fixture(scope="module")
def findings() -> StatisticsFindings:
    sets = [
        some_set("real", 0, repeats=False),
        some_set("alike", 1, repeats=False),
        some_set("loops", 2, repeats=True),
    ]
    return judge_sets(sets, CONFIG, seed=0, tell=lambda done, total, part="": None)


def test_the_first_set_is_the_reference_and_what_differs_is_apart(findings) -> None:
    real, alike, loops = findings.sets
    assert findings.reference == "real" and real.error is None
    assert not any(is_apart(findings, real, name) for name in real.intervals)
    for name in ("compression", "bar_similarity_error", "groove_consistency"):
        assert not is_apart(findings, alike, name), name
    for name in ("compression", "bar_similarity_error"):
        assert is_apart(findings, loops, name), name
    assert not is_apart(findings, loops, "density")


def test_a_reference_of_any_name_reads_as_one() -> None:
    sets = [some_set("in", 0, repeats=False), some_set("out", 2, repeats=True)]
    found = judge_sets(sets, CONFIG, seed=0, tell=lambda done, total, part="": None)
    caption = statistics_table(found).caption
    assert caption is not None and str(caption).endswith("; * apart from 'in'")
    assert "does not meet that of 'in';" in statistics_page(found, CONFIG, "two", 0)


def test_a_set_alone_has_nothing_to_be_held_against(findings) -> None:
    sets = [findings.sets[0].pieces]
    alone = judge_sets(sets, CONFIG, seed=0, tell=lambda done, total, part="": None)
    assert alone.reference is None is alone.chance
    assert not is_apart(alone, alone.sets[0], "density")
    assert "<h2>Numbers</h2>" in statistics_page(alone, CONFIG, "one", 0)


def test_readable_is_the_share_of_files(findings) -> None:
    one = findings.sets[0].pieces
    broken = UnreadFile(name="x.mid", reason="no_notes", detail="")
    sets = [PieceSet(name="some", pieces=one.pieces, unread=[broken] * 2)]
    found = judge_sets(sets, CONFIG, seed=0, tell=lambda done, total, part="": None)
    assert found.sets[0].intervals["readable"].mean == 0.8


def test_sound_is_cut_so_that_the_page_stays_small(findings) -> None:
    long = piece(*(note(bar, 0, 60, BAR) for bar in range(150)))
    sets = [
        PieceSet(name=name, pieces=[judge_piece(f"{n}", long, None) for n in range(2)], unread=[])
        for name in ("a", "b")
    ]
    found = judge_sets(sets, CONFIG, seed=0, tell=lambda done, total, part="": None)
    config = StatisticsConfig(player_seconds=1000.0, num_workers=1)
    page = statistics_page(found, config, "long", 0)
    sound = sum(map(len, re.findall(r'src="([^"]*)"', page)))
    assert 0.9 * _MOST_SOUND_BYTES < sound < 1.01 * _MOST_SOUND_BYTES
