"""Bars chosen and written anew in a real browser: by mouse, finger and keys, and undone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo.browsers import (
    IN_A_BROWSER,
    KEYBOARD,
    SECONDS,
    click_and_wait,
    download,
    drag,
    place,
    says,
    touch,
    upload,
)
from tests.demo.pages import Visitor, serving, talkative
from tests.demo.test_changes import BEFORE, SONG, Patient, notes_where

playwright = pytest.importorskip("playwright.sync_api", reason="needs .[browser]: playwright")
pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def page() -> Iterator[Visitor]:
    with serving(talkative(0.0)) as visitor:
        yield visitor


def but(first: int, last: int) -> Callable[[int], bool]:
    return lambda bar: not first <= bar < last


def test_chosen_bars_of_an_upload_are_rewritten_undone_and_handed_out(open_page, tmp_path) -> None:
    tab = open_page()
    assert tab.is_hidden("#edit")
    upload(tab, SONG)
    assert tab.is_disabled("#rewrite") and tab.is_disabled("#undo") and tab.is_hidden("#unpick")
    drag(tab, 1, 2)
    says(tab, "#rewrite", "Rewrite bars 2–3")
    # A model that was not trained to fill says so where something follows, and there alone.
    assert "does not read what follows" in tab.inner_text("#edit-note")
    assert tab.inner_text("#now") == "0:00"  # a drag goes nowhere

    click_and_wait(tab, "#rewrite")
    after = download(tab, tmp_path / "after.mid")
    assert notes_where(after, but(1, 3)) == notes_where(BEFORE, but(1, 3))
    assert after != BEFORE and after.num_bars == 6
    shown = sum(int(each.split()[0]) for each in tab.locator("#tracks .count").all_inner_texts())
    assert shown == after.num_notes
    says(tab, "#status", f"6 bars, {after.num_notes} notes")
    assert tab.locator("#takes li").count() == 1
    # What was changed is heard at once, and stays chosen for another try.
    tab.wait_for_selector("body[data-playing=playing]")
    assert tab.inner_text("#rewrite") == "Rewrite bars 2–3"

    click_and_wait(tab, "#rewrite")
    again = download(tab, tmp_path / "again.mid")
    assert notes_where(again, but(1, 3)) == notes_where(BEFORE, but(1, 3)) and again != after

    tab.click("#undo")
    assert download(tab, tmp_path / "undone.mid") == after
    tab.keyboard.press("Control+z")
    assert tab.is_disabled("#undo")
    assert download(tab, tmp_path / "as-it-came.mid") == BEFORE
    says(tab, "#status", f"6 bars, {BEFORE.num_notes} notes")


def test_keys_choose_bars_and_a_click_beside_them_lets_them_go(open_page) -> None:
    tab = open_page()
    upload(tab, SONG)
    tab.focus("#roll")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    says(tab, "#rewrite", "Rewrite bar 2")
    tab.keyboard.press("Shift+ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    says(tab, "#rewrite", "Rewrite bars 2–4")
    tab.keyboard.press("Shift+ArrowLeft")
    says(tab, "#rewrite", "Rewrite bars 2–3")
    tab.keyboard.press("Escape")
    says(tab, "#rewrite", "Rewrite bars")
    assert tab.is_disabled("#rewrite")

    drag(tab, 4, 3)  # backwards
    says(tab, "#rewrite", "Rewrite bars 4–5")
    tab.mouse.click(*place(tab, 3))  # within: goes there and leaves them chosen
    says(tab, "#rewrite", "Rewrite bars 4–5")
    playwright.expect(tab.locator("#now")).not_to_have_text("0:00", timeout=SECONDS)
    tab.keyboard.down("Shift")
    tab.mouse.click(*place(tab, 1))
    tab.keyboard.up("Shift")
    says(tab, "#rewrite", "Rewrite bars 2–5")
    tab.mouse.click(*place(tab, 0, 0.1))
    says(tab, "#rewrite", "Rewrite bars")


def test_the_roll_moves_on_under_a_drag_at_its_edge(open_page) -> None:
    tab = open_page()
    upload(tab, SONG)
    for _ in range(3):
        tab.click("#zoom-in")
    box = tab.locator("#roll").bounding_box()
    middle = box["y"] + 150
    tab.click("#rewind")
    tab.mouse.move(box["x"] + KEYBOARD + 40, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 5, middle, steps=4)
    says(tab, "#rewrite", "Rewrite bars 1–6")
    tab.mouse.up()
    says(tab, "#rewrite", "Rewrite bars 1–6")


def test_a_finger_chooses_bars_in_chinese(open_page) -> None:
    tab = open_page("zh-CN", has_touch=True)
    upload(tab, SONG)
    touch(tab, 1, 3)
    says(tab, "#rewrite", "重写第 2–4 小节")
    assert "不会读取后面的小节" in tab.inner_text("#edit-note")
    tab.click("[data-language=en]")
    says(tab, "#rewrite", "Rewrite bars 2–4")
    assert tab.inner_text("#edit-note").startswith("Chosen: bars 2–4; all else stays as it is.")
    tab.click("#unpick")
    assert tab.is_disabled("#rewrite")


def test_a_piece_goes_on_behind_its_end_and_back(open_page, tmp_path: Path) -> None:
    tab = open_page()
    tab.fill("#bars", "2")
    tab.select_option("#add-instrument", "40")
    tab.click("#write")
    tab.wait_for_selector("body[data-state=ready]")
    short = download(tab, tmp_path / "short.mid")
    tab.fill("#more", "3")
    click_and_wait(tab, "#go-on")
    longer = download(tab, tmp_path / "longer.mid")
    assert longer.num_bars == short.num_bars + 3
    assert notes_where(longer, lambda bar: bar < short.num_bars) == notes_where(
        short, lambda _: True
    )
    # The new bars are chosen, in case that others are wanted.
    says(tab, "#rewrite", f"Rewrite bars {short.num_bars + 1}–{longer.num_bars}")
    tab.click("#undo")
    assert download(tab, tmp_path / "undone.mid") == short
    assert tab.is_disabled("#rewrite")  # these bars are no more


def test_a_change_waits_stops_and_leaves_the_piece_as_it_was(
    open_page, page: Visitor, monkeypatch, tmp_path: Path
) -> None:
    tab = open_page()
    upload(tab, SONG)
    drag(tab, 5, 5)
    assert tab.is_disabled("#rewrite")  # that was a click
    drag(tab, 4, 5)
    with page.studio.line.join():
        tab.click("#rewrite")
        says(tab, "#status", "in the queue: 1 before you")
        tab.click("#halt")
        tab.wait_for_selector("body[data-state=ready]")
    monkeypatch.setattr(page.studio, "composer", talkative(0.0, kind=Patient))
    tab.click("#rewrite")
    says(tab, "#status", "rewriting bars 5–6 …")
    assert tab.is_disabled("#undo") and tab.is_disabled("#go-on") and tab.is_hidden("#rewrite")
    tab.click("#halt")
    tab.wait_for_selector("body[data-state=ready]")
    assert tab.is_hidden("#error") and tab.is_disabled("#undo")
    assert download(tab, tmp_path / "kept.mid") == BEFORE


def test_a_refused_change_is_said_in_a_line_and_changes_nothing(
    open_page, page: Visitor, monkeypatch, tmp_path: Path
) -> None:
    # Its time is over before it begins.
    monkeypatch.setattr(page.studio, "composer", talkative(0.0, max_seconds=-1.0))
    tab = open_page()
    upload(tab, SONG)
    drag(tab, 0, 1)
    tab.click("#rewrite")
    says(tab, "#error-line", "The bars were not written within -1 seconds; the piece is as it was.")
    tab.wait_for_selector("body[data-state=ready]")
    assert tab.is_disabled("#undo")
    assert download(tab, tmp_path / "kept.mid") == BEFORE
