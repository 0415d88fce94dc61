"""A browser for tests of the page: which one, how it is started, and what is done in it."""

import shutil
from pathlib import Path

import pytest

from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
SECONDS = 60_000.0  # milliseconds: a busy machine is slow and not wrong

IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: found no chromium on the path"),
]

# The quarter at which each bar of the song begins, and where the roll shows a quarter.
QUARTERS = [0, 4, 8, 11, 14, 17]
KEYBOARD, PER_QUARTER = 46, 44


def upload(tab, song: bytes) -> None:
    """Open a song, and leave it at its start."""
    tab.set_input_files("#file", {"name": "song.mid", "mimeType": "audio/midi", "buffer": song})
    tab.wait_for_selector("body[data-playing=playing]")
    tab.click("#play")
    tab.click("#rewind")
    tab.wait_for_selector("body[data-state=ready][data-playing=stopped]")


def place(tab, bar: int, beats: float = 0.5) -> tuple[float, float]:
    """Where a bar lies on the screen, some beats after its beginning."""
    box = tab.locator("#roll").bounding_box()
    return box["x"] + KEYBOARD + PER_QUARTER * (QUARTERS[bar] + beats), box["y"] + 150


def drag(tab, first: int, last: int) -> None:
    tab.mouse.move(*place(tab, first))
    tab.mouse.down()
    tab.mouse.move(*place(tab, last), steps=6)
    tab.mouse.up()


def touch(tab, first: int, last: int) -> None:
    finger = tab.context.new_cdp_session(tab)

    def send(kind: str, *points: tuple[float, float]) -> None:
        found = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    (start, y), (end, _) = place(tab, first), place(tab, last)
    send("touchStart", (start, y))
    for part in range(1, 7):
        send("touchMove", (start + (end - start) * part / 6, y))
    send("touchEnd")


def download(tab, path: Path) -> QuantisedPiece:
    with tab.expect_download() as found:
        tab.click("#download")
    found.value.save_as(path)
    return quantise(read_midi(path))


def click_and_wait(tab, button: str) -> None:
    tab.click(button)
    tab.wait_for_selector("#undo:enabled")
    tab.wait_for_selector("body[data-state=ready]")


def says(tab, where: str, text: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect(tab.locator(where)).to_have_text(text, timeout=SECONDS)
