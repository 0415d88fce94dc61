"""Instruments that are written anew while others are kept, chosen in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meloformer.midi.quantised import QuantisedPiece
from tests.demo.browsers import IN_A_BROWSER, click_and_wait, download, drag, says, upload
from tests.demo.pages import Visitor, serving, talkative
from tests.demo.test_changes import BASS, BEFORE, SONG, VIOLIN, Note, notes_where
from tests.midi.hand_written import midi_file, note, program

playwright = pytest.importorskip("playwright.sync_api", reason="needs .[browser]: playwright")
pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def page() -> Iterator[Visitor]:
    with serving(talkative(0.3)) as visitor:
        yield visitor


def kept_of(music: QuantisedPiece, first: int, last: int, written: int) -> list[Note]:
    """Notes of other bars and of other instruments than the one that was written."""
    return [
        note
        for note in notes_where(music, lambda _: True)
        if not (first <= note[0] < last and note[1] == written)
    ]


def pressed(tab) -> dict[str, str]:
    chips = tab.locator("#player-chips button").all()
    return {chip.inner_text().lower(): chip.get_attribute("aria-pressed") for chip in chips}


def test_one_instrument_is_written_anew_in_some_bars_by_keys_alone(open_page, tmp_path) -> None:
    tab = open_page()
    upload(tab, SONG)
    assert pressed(tab) == {"piano": "true", "violin": "true"}
    assert tab.is_disabled("#rewrite")
    tab.focus("#roll")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    says(tab, "#edit-note", "Chosen: bars 2–3; all else stays as it is.")
    tab.locator("#player-chips button").first.focus()
    tab.keyboard.press("Space")
    # The chip that was pressed keeps the focus, and nothing plays.
    assert tab.evaluate("document.activeElement.dataset.player") == "1"
    assert pressed(tab) == {"piano": "false", "violin": "true"}
    assert tab.get_attribute("body", "data-playing") == "stopped"
    says(tab, "#edit-note", "Chosen: violin in bars 2–3; all else stays as it is.")
    tab.focus("#rewrite")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#undo:enabled")
    after = download(tab, tmp_path / "after.mid")
    assert kept_of(after, 1, 3, VIOLIN) == kept_of(BEFORE, 1, 3, VIOLIN)
    assert after != BEFORE
    # Still chosen, for another try.
    assert pressed(tab) == {"piano": "false", "violin": "true"}
    tab.keyboard.press("Control+z")
    assert download(tab, tmp_path / "undone.mid") == BEFORE


def test_an_instrument_is_added_to_the_whole_piece_and_taken_back(open_page, tmp_path) -> None:
    tab = open_page()
    upload(tab, SONG)
    tab.select_option("#add-player", "33")
    bass = tab.locator("#player-chips button", has_text="bass")
    # Who adds one keeps the others; all bars are meant where none are chosen.
    assert list(pressed(tab).values()).count("true") == 1 and len(pressed(tab)) == 3
    assert bass.get_attribute("aria-pressed") == "true"
    says(tab, "#rewrite", "Rewrite all bars")
    click_and_wait(tab, "#rewrite")
    after = download(tab, tmp_path / "after.mid")
    assert kept_of(after, 0, 6, BASS) == notes_where(BEFORE, lambda _: True)
    assert BASS in after.instrument
    assert tab.locator("#tracks li").count() == 3

    tab.click("#undo")
    assert download(tab, tmp_path / "undone.mid") == BEFORE
    assert tab.locator("#tracks li").count() == 2
    # It still waits to join, until it is told not to: then all is as at first.
    assert bass.get_attribute("aria-pressed") == "true"
    bass.click()
    assert pressed(tab) == {"piano": "true", "violin": "true"}
    assert tab.is_disabled("#rewrite")


def test_keys_go_through_the_list_and_enter_adds_what_it_shows(open_page) -> None:
    tab = open_page()
    upload(tab, SONG)
    for where in ("#add-player", "#add-instrument"):
        tab.focus(where)
        tab.keyboard.type("flute")
        assert tab.locator(".chip").count() == 0 and "flute" not in pressed(tab)
        if where == "#add-player":
            tab.keyboard.press("Enter")
            assert pressed(tab) == {"piano": "false", "violin": "false", "flute": "true"}
            assert tab.evaluate("document.activeElement.id") == "add-player"
            tab.locator("#player-chips [aria-pressed=true]").click()
    tab.keyboard.press("Enter")
    playwright.expect(tab.locator("#chips .chip")).to_have_count(1)
    assert tab.get_attribute("body", "data-state") == "ready"  # Enter has sent no wish


def test_a_piece_beyond_what_is_written_at_once_wants_bars_to_be_chosen(open_page) -> None:
    tab = open_page()
    upload(tab, midi_file([program(0), *(note(1920 * bar, 480, 60) for bar in range(12))]))
    tab.select_option("#add-player", "33")
    says(tab, "#edit-note", "That is too long: at most 8 bars at once.")
    assert tab.is_disabled("#rewrite")
    drag(tab, 0, 1)
    says(tab, "#edit-note", "Chosen: fingered electric bass in bars 1–2; all else stays as it is.")
    assert tab.is_enabled("#rewrite")


def test_nobody_or_everybody_is_chosen_at_once_and_nobody_cannot_be_written(open_page) -> None:
    tab = open_page("zh-CN")
    upload(tab, SONG)
    drag(tab, 1, 2)
    says(tab, "#players-all", "全不选")
    tab.click("#players-all")
    assert set(pressed(tab).values()) == {"false"}
    assert tab.is_disabled("#rewrite")
    says(tab, "#edit-note", "请至少选择一种要重写的乐器。")
    tab.locator("#player-chips button").last.click()
    says(tab, "#edit-note", "已选第 2–3 小节的小提琴；其余保持不变。")
    tab.click("#players-all")
    says(tab, "#edit-note", "已选第 2–3 小节；其余保持不变。")
    tab.click("[data-language=en]")
    says(tab, "#players-all", "choose none")


def test_a_model_that_cannot_keep_instruments_says_so_and_offers_none(
    open_page, page: Visitor, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page.studio, "composer", talkative(0.0))
    tab = open_page()
    upload(tab, SONG)
    assert tab.locator("#player-chips button:disabled").count() == 2
    assert tab.is_hidden("#add-player") and tab.is_hidden("#players-all")
    assert "not trained to keep" in tab.inner_text("#players")
    drag(tab, 1, 2)
    click_and_wait(tab, "#rewrite")
    assert download(tab, tmp_path / "after.mid") != BEFORE
