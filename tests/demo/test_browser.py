"""The page in a real browser, from the first click and from an upload to the download."""

import threading
from pathlib import Path
from typing import Any

import pytest

from meloformer.demo import actions
from meloformer.demo.composer import Composer
from meloformer.demo.score import piece_record
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from tests.demo.browsers import IN_A_BROWSER, SECONDS
from tests.demo.pages import LONGER, Visitor
from tests.midi.hand_written import midi_file, note, program

UPLOAD = midi_file(
    [program(0), note(0, 480, 60), note(1920, 480, 64), note(7680, 480, 65)],
    [program(40, 1), note(960, 960, 72, channel=1)],
)

playwright = pytest.importorskip("playwright.sync_api", reason="needs .[browser]: playwright")
pytestmark = IN_A_BROWSER


def wish(tab, seed: int = 7, bars: int = 8) -> None:
    tab.fill("#bars", str(bars))
    tab.fill("#seed", str(seed))
    for program_number in LONGER["instruments"]:
        tab.select_option("#add-instrument", program_number)


def place_of_line(tab) -> int:
    """Where the line of the piano roll stands, in pixels: its column is the most orange one."""
    return tab.evaluate(
        """() => {
            const canvas = document.getElementById("roll");
            const row = canvas.getContext("2d").getImageData(0, 3, canvas.width, 1).data;
            let best = -1;
            for (let x = 0; x < canvas.width && best < 0; x++) {
                if (row[4 * x] > 240 && row[4 * x + 1] > 160 && row[4 * x + 2] < 110) best = x;
            }
            return best;
        }"""
    )


def test_a_file_goes_from_upload_to_sound_mute_and_download(open_page, tmp_path: Path) -> None:
    tab = open_page()
    assert tab.is_disabled("#download") and tab.is_disabled("#play")
    tab.set_input_files(
        "#file", {"name": "<b>mine</b>.mid", "mimeType": "audio/midi", "buffer": UPLOAD}
    )
    tab.wait_for_selector("body[data-playing=playing]")
    playwright.expect(tab.locator("#status")).to_have_text("5 bars, 4 notes")
    names = tab.locator("#tracks .name").all_inner_texts()
    assert [name.lower() for name in names] == ["piano", "violin"]
    assert tab.locator("#takes b").all_inner_texts() == ["<b>mine</b>.mid"]

    # The line follows the sound.
    first = place_of_line(tab)
    playwright.expect(tab.locator("#now")).not_to_have_text("0:00", timeout=SECONDS)
    assert place_of_line(tab) > first >= 0

    violin = tab.locator("#tracks li", has_text="violin")
    violin.get_by_role("button", name="Mute").click()
    assert violin.get_by_role("button", name="Mute").get_attribute("aria-pressed") == "true"

    with tab.expect_download() as download:
        tab.click("#download")
    assert download.value.suggested_filename.endswith("-meloformer.mid")
    assert "/" not in download.value.suggested_filename
    download.value.save_as(tmp_path / "got.mid")
    assert quantise(read_midi(tmp_path / "got.mid")) == quantise(read_midi(UPLOAD))


def test_a_click_is_heard_while_the_rest_is_written_and_the_file_is_what_was_heard(
    open_page, composer: Composer, tmp_path: Path
) -> None:
    tab = open_page()
    wish(tab)
    # What the sound card is given, note by note: the first source starts before the piece is whole.
    tab.evaluate(
        """() => {
            window.started = [];
            const start = AudioScheduledSourceNode.prototype.start;
            AudioScheduledSourceNode.prototype.start = function (at) {
                window.started.push(document.body.dataset.state);
                return start.call(this, at);
            };
        }"""
    )
    tab.click("#write")
    tab.wait_for_selector("body[data-state=ready]")
    assert tab.evaluate("window.started[0]") == "writing"
    [measure] = tab.evaluate(
        "performance.getEntriesByName('click-to-first-note').map((one) => one.duration)"
    )
    assert measure > 0
    assert "8 bars" in tab.inner_text("#status")
    with tab.expect_download() as download:
        tab.click("#download")
    assert download.value.suggested_filename == "meloformer-7.mid"
    download.value.save_as(tmp_path / "got.mid")
    shown = tab.locator("#tracks .count").all_inner_texts()
    count = sum(int(text.split()[0]) for text in shown)
    assert quantise(read_midi(tmp_path / "got.mid")).num_notes == count


def test_one_of_something_is_said_as_one(open_page) -> None:
    tab = open_page()
    assert tab.inner_text("#model").endswith(" layers")
    tab.fill("#bars", "1")
    tab.click("#write")
    tab.wait_for_selector("body[data-state=ready]")
    assert tab.inner_text("#status").startswith("1 bar, ")


def test_both_languages_are_there_and_the_browsers_own_comes_first(open_page) -> None:
    tab = open_page("zh-CN")
    assert tab.inner_text("#write") == "写一首"
    assert tab.get_attribute("html", "lang") == "zh-CN"
    tab.click("[data-language=en]")
    assert tab.inner_text("#write") == "Write music"
    tab.reload()
    tab.wait_for_selector("body[data-ready=yes]")
    assert tab.inner_text("#write") == "Write music"


def test_without_a_bridge_texts_are_off_and_the_page_says_why(open_page) -> None:
    tab = open_page()
    assert tab.is_disabled("#text")
    assert "--bridge" in tab.inner_text("#text-note")


def test_a_refusal_is_shown_in_a_line_and_goes_when_it_is_closed(open_page) -> None:
    tab = open_page()
    tab.set_input_files("#file", {"name": "a.mid", "mimeType": "", "buffer": b"no MIDI"})
    tab.wait_for_selector("#error:not([hidden])")
    assert tab.inner_text("#error-line").startswith("This MIDI file cannot be used")
    tab.click("#error-close")
    assert tab.is_hidden("#error")
    big = {"name": "b.mid", "mimeType": "", "buffer": bytes(60_000)}
    tab.set_input_files("#file", big)
    tab.wait_for_selector("#error:not([hidden])")
    assert "too large" in tab.inner_text("#error-line")


def test_who_waits_sees_the_place_and_a_closed_page_frees_it(open_page, page: Visitor) -> None:
    tab = open_page()
    with page.studio.line.join():
        tab.click("#write")
        tab.wait_for_selector("body[data-state=waiting]")
        assert tab.inner_text("#status") == "in the queue: 1 before you"
        assert len(page.studio.line) == 2
        tab.click("#write")  # stop
        tab.wait_for_selector("body[data-state=idle]")
        tab.wait_for_timeout(600)
        assert len(page.studio.line) == 1


def test_a_piece_that_ends_while_it_is_stopped_is_kept(open_page, page: Visitor, monkeypatch):
    is_written, is_asked_for = threading.Event(), threading.Event()

    def held_back(*arguments: Any) -> dict[str, Any]:
        is_written.set()
        assert is_asked_for.wait(SECONDS / 1000)
        return piece_record(*arguments)

    def answer(route: Any) -> None:
        said = route.fetch()
        assert "nothing_to_stop" in said.text()
        # The browser complains of other statuses by itself.
        route.fulfill(status=200, body=said.text() + "\n")

    monkeypatch.setattr(actions, "piece_record", held_back)
    tab = open_page()
    tab.route("**/api/stop", answer)
    wish(tab, bars=2)
    tab.click("#write")
    assert is_written.wait(SECONDS / 1000)
    with tab.expect_response("**/api/stop"):
        tab.click("#write")
    tab.wait_for_timeout(200)
    is_asked_for.set()
    tab.wait_for_selector("body[data-state=ready]")
    assert tab.locator("#takes button").count() == 1 and tab.is_enabled("#download")
