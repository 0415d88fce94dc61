"""Bars of a piece written anew over HTTP: all others stay, and who may ask for what."""

import base64
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from meloformer.demo.border import PageError
from meloformer.demo.composer import Composer
from meloformer.demo.wishes import Change
from meloformer.generation.editing import continue_piece, rewrite_bars
from meloformer.generation.notices import Notice, NoticeCode
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from tests.demo.pages import SMALL, Visitor, serving, talkative, wait_until
from tests.midi.hand_written import metre, midi_file, note, program, tempo

# Six bars: 4/4 twice, 3/4 from the third on, faster from the fifth on; a note from bar to bar.
SONG = midi_file(
    [metre(0, 4, 4), metre(3840, 3, 4), tempo(0, 500_000), tempo(6720, 400_000)],
    [program(0), *(note(480 * beat, 480, 60 + beat % 7, 40 + beat) for beat in range(20))],
    [program(40, 1), note(0, 4800, 72, channel=1), note(7200, 1440, 74, channel=1)],
)
BEFORE = quantise(read_midi(SONG))

Note = tuple[int, ...]


def asking(first: int, last: int, song: bytes = SONG, **more: object) -> dict[str, object]:
    midi = base64.b64encode(song).decode()
    return {"midi": midi, "first": first, "last": last, "seed": 3, **more}


def music_of(event: dict) -> QuantisedPiece:
    return quantise(read_midi(base64.b64decode(event["midi"])))


def notes_where(piece: QuantisedPiece, is_kept: Callable[[int], bool]) -> list[Note]:
    columns = (
        piece.bar, piece.instrument, piece.onset_steps, piece.pitch,
        piece.duration_steps, piece.velocity,
    )  # fmt: skip
    every = zip(*(column.tolist() for column in columns), strict=True)
    return [one for one in every if is_kept(one[0])]


@pytest.fixture(scope="module")
def page() -> Iterator[Visitor]:
    with serving(talkative(0.0)) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def filler() -> Iterator[Visitor]:
    """A page whose model says that it has learned to fill."""
    with serving(talkative(0.3)) as visitor:
        yield visitor


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 4), (5, 6), (0, 6)])
def test_all_but_the_chosen_bars_of_a_file_stays_note_for_note(page, first, last) -> None:
    begin, *_, piece = page.post("/api/change", asking(first, last)).events
    assert begin["event"] == "begin" and begin["seed"] == 3
    assert piece["event"] == "piece"
    after = music_of(piece)

    def is_kept(bar: int) -> bool:
        return not first <= bar < last

    assert notes_where(after, is_kept) == notes_where(BEFORE, is_kept)
    inside = notes_where(after, lambda bar: not is_kept(bar))
    assert inside != notes_where(BEFORE, lambda bar: not is_kept(bar))
    assert np.array_equal(after.bar_metre, BEFORE.bar_metre)
    assert np.array_equal(after.bar_tempo, BEFORE.bar_tempo)
    # What the page shows is what the file holds.
    shown = [
        tuple([bar["bar"], n[0], n[1], n[2], n[3], n[4]])
        for bar in piece["bars"]
        for n in bar["notes"]
    ]
    assert shown == notes_where(after, lambda _: True)


def test_the_bars_are_those_that_python_would_write_with_the_same_seed(page: Visitor) -> None:
    wish = asking(1, 3, temperature=0.7)
    piece = page.post("/api/change", wish).events[-1]
    model, sampling = page.studio.composer.model, SamplingConfig(temperature=0.7)
    assert music_of(piece) == rewrite_bars(model, BEFORE, 1, 3, sampling, seed=3)
    other = page.post("/api/change", {**wish, "seed": 4}).events[-1]
    assert music_of(other) != music_of(piece)


def test_bars_behind_the_end_go_on_with_the_piece(page: Visitor) -> None:
    *_, piece = page.post("/api/change", asking(6, 8)).events
    after = music_of(piece)
    assert after.num_bars == 8
    assert notes_where(after, lambda bar: bar < 6) == notes_where(BEFORE, lambda _: True)
    model = page.studio.composer.model
    assert after == continue_piece(model, BEFORE, 6, 2, SamplingConfig(), seed=3)


PIANO, VIOLIN, BASS, DRUMS = 1, 41, 34, 0


@pytest.mark.parametrize(("first", "last"), [(1, 3), (5, 6), (0, 6)])
@pytest.mark.parametrize(
    ("names", "written"),
    [(["40"], {VIOLIN}), (["0"], {PIANO}), (["drums"], {DRUMS}), (["40", "33"], {VIOLIN, BASS})],
)
def test_instruments_that_were_not_chosen_stay_note_for_note_in_all_bars(
    filler: Visitor, first: int, last: int, names: list[str], written: set[int]
) -> None:
    *_, piece = filler.post("/api/change", asking(first, last, instruments=names)).events
    after = music_of(piece)

    def kept_of(music: QuantisedPiece) -> list[Note]:
        kept = []
        for bar, instrument, *rest in notes_where(music, lambda _: True):
            if not (first <= bar < last and instrument in written):
                kept.append((bar, instrument, *rest))
        return kept

    assert kept_of(after) == kept_of(BEFORE)
    # Nobody else plays a new note, and all who were asked for play.
    new = set(notes_where(after, lambda _: True)) - set(kept_of(BEFORE))
    assert {note[1] for note in new} == written
    assert after.num_bars == BEFORE.num_bars
    assert np.array_equal(after.bar_tempo, BEFORE.bar_tempo)
    assert np.array_equal(after.bar_metre, BEFORE.bar_metre)


def test_chosen_instruments_are_those_that_python_would_write(filler: Visitor) -> None:
    model = filler.studio.composer.model
    for names, instruments in ((["40"], [VIOLIN]), (["0", "drums", "40"], [DRUMS, PIANO, VIOLIN])):
        *_, piece = filler.post("/api/change", asking(1, 3, instruments=names)).events
        wished = rewrite_bars(
            model, BEFORE, 1, 3, SamplingConfig(), seed=3, instruments=instruments
        )
        assert music_of(piece) == wished


def test_only_the_chosen_instruments_play_on_behind_the_end(page: Visitor) -> None:
    *_, piece = page.post("/api/change", asking(6, 8, instruments=["40"])).events
    after = music_of(piece)
    assert notes_where(after, lambda bar: bar < 6) == notes_where(BEFORE, lambda _: True)
    assert {note[1] for note in notes_where(after, lambda bar: bar >= 6)} == {VIOLIN}


def test_a_model_that_cannot_keep_an_instrument_refuses_in_a_line(page: Visitor) -> None:
    end = page.post("/api/change", asking(1, 3, instruments=["40"])).events[-1]
    assert end["event"] == "error" and "trained with fill_rate 0" in end["line"]
    # Where nobody is kept it need not.
    everybody = page.post("/api/change", asking(1, 3, instruments=["0", "40", "33"])).events[-1]
    new = notes_where(music_of(everybody), lambda bar: 1 <= bar < 3)
    assert {note[1] for note in new} >= {PIANO, VIOLIN, BASS}


def test_a_piece_that_was_written_here_is_changed_again_and_again(page: Visitor) -> None:
    piece = page.post("/api/write", {**SMALL, "bars": 4}).events[-1]
    for first, last in ((0, 1), (1, 2), (len(piece["bars"]), len(piece["bars"]) + 1)):
        changed = page.post(
            "/api/change", {"midi": piece["midi"], "first": first, "last": last, "seed": 1}
        ).events[-1]
        as_was = [bar for bar in piece["bars"] if not first <= bar["bar"] < last]
        assert [bar for bar in changed["bars"] if not first <= bar["bar"] < last] == as_was
        piece = changed


def test_who_is_not_trained_to_fill_says_so_where_something_follows(page, filler) -> None:
    assert not json.loads(page.get("/api/facts").body)["fills"]
    assert json.loads(filler.get("/api/facts").body)["fills"]

    def notices(visitor: Visitor, first: int, last: int) -> list[str]:
        events = visitor.post("/api/change", asking(first, last)).events
        return [event["code"] for event in events if event["event"] == "notice"]

    assert notices(page, 1, 2) == [NoticeCode.NO_FILL.value]
    assert notices(page, 5, 6) == []
    assert notices(page, 6, 7) == []
    assert notices(filler, 1, 2) == []


def test_a_piece_beyond_what_the_model_reads_is_said_to_be_read_in_part(page: Visitor) -> None:
    long = midi_file([program(0), *(note(240 * n, 240, 30 + n % 80) for n in range(400))])
    events = page.post("/api/change", asking(48, 49, long)).events
    assert NoticeCode.NEAREST.value in {event.get("code") for event in events}
    assert events[-1]["event"] == "piece"


def test_bars_beyond_what_is_written_at_once_are_said_to_come_in_parts(filler: Visitor) -> None:
    long = midi_file([program(0), *(note(120 * n, 120, 30 + n % 80) for n in range(400))])
    events = filler.post("/api/change", asking(12, 20, long)).events
    codes = [event["code"] for event in events if event["event"] == "notice"]
    assert codes == [NoticeCode.IN_PARTS.value, NoticeCode.NEAREST.value]
    assert music_of(events[-1]).num_bars == 25


def test_the_page_has_words_for_each_notice_and_hears_of_it_by_its_code(
    page: Visitor, monkeypatch
) -> None:
    def telling(change, piece, say, is_over) -> QuantisedPiece:
        for code in NoticeCode:
            say(Notice(code=code, line="a line that says nothing of what it is about"))
        return piece

    monkeypatch.setattr(page.studio.composer, "change", telling)
    events = page.post("/api/change", asking(1, 2)).events
    sent = [event["code"] for event in events if event["event"] == "notice"]
    assert sent == [code.value for code in NoticeCode]
    words = json.loads(page.get("/words.json").body)
    assert {name for name in words if name.startswith("notice_")} == {f"notice_{c}" for c in sent}


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"midi": None}, "bad_request", "found no midi, first or last"),
        ({"first": None}, "bad_request", "found no midi, first or last"),
        ({"midi": "no base64!"}, "bad_field", "midi: found no base64!"),
        ({"midi": ""}, "bad_field", "midi: found"),
        ({"midi": 5}, "bad_field", "midi: found 5"),
        ({"midi": "A" * 8000}, "bad_midi", "the MIDI file: "),
        ({"midi": "A" * 80_000}, "too_large", "found a file of 60000 bytes; allowed: up to 52428"),
        ({"first": -1}, "bad_field", "first: found -1"),
        ({"first": 3, "last": 3}, "bad_field", "last: found 3; allowed: above first, 3"),
        ({"last": 2.5}, "bad_field", "last: found 2.5"),
        ({"first": 0, "last": 9}, "too_many_bars", "9 bars: allowed: up to 8 at once"),
        ({"temperature": 9}, "bad_field", "temperature: found 9"),
        ({"instruments": []}, "bad_field", "instruments: found []; allowed: one or more of 0 to"),
        ({"instruments": "drums"}, "bad_field", "instruments: found drums"),
        ({"instruments": ["0", 40]}, "bad_field", "instruments: found ['0', 40]"),
        ({"instruments": ["128"]}, "bad_field", "instruments: found ['128']"),
        ({"instruments": ["9" * 5000]}, "bad_field", "instruments: found ['999"),
        ({"instruments": ["0"] * 130}, "bad_field", "instruments: found ['0', '0'"),
        ({"bars": 4}, "bad_field", "bars: found an unknown field"),
    ],
)
def test_a_change_that_is_none_is_refused_in_a_line_before_anybody_waits(
    page: Visitor, body, code: str, said: str
) -> None:
    with page.studio.line.join():  # it would wait for ever
        answer = page.post("/api/change", {**asking(1, 2), **body})
    assert answer.status in (400, 413)
    assert answer.refusal["code"] == code
    assert said in answer.refusal["line"] and len(answer.refusal["line"]) < 400


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(page: Visitor) -> None:
    answer = page.post("/api/change", b"x" * 120_000)
    assert answer.status == 413 and answer.refusal["code"] == "too_large"


@pytest.mark.parametrize(("first", "last"), [(5, 8), (7, 8), (900, 901)])
def test_bars_that_the_piece_does_not_have_are_refused(page: Visitor, first, last) -> None:
    answer = page.post("/api/change", asking(first, last))
    refusal = answer.refusal
    assert answer.status == 400, "it is known before anybody waits"
    assert (refusal["event"], refusal["code"]) == ("error", "no_such_bars")
    assert refusal["values"] == {"most": 6}


def test_another_site_cannot_make_the_browser_ask_for_a_change(page: Visitor) -> None:
    answer = page.post("/api/change", asking(1, 2), Origin="http://evil.example")
    assert answer.status == 403 and answer.refusal["code"] == "foreign_site"


def test_a_change_waits_in_the_line_of_those_who_write(page: Visitor) -> None:
    with page.studio.line.join():
        connection, events = page.begin("/api/change", asking(5, 6))
        assert next(events) == {"event": "waiting", "before": 1}
        assert page.post("/api/change", asking(5, 6)).refusal["code"] == "queue_full"
    with connection:
        assert [event["event"] for event in events] == ["begin", "piece"]


class Patient(Composer):
    """Draws nothing until it is told that it is over."""

    def change(self, change, piece, say, is_over) -> QuantisedPiece:
        def over() -> bool:
            wait_until(is_over)
            return True

        return super().change(change, piece, say, over)


@pytest.fixture
def patient() -> Iterator[Visitor]:
    with serving(talkative(0.0, kind=Patient)) as visitor:
        yield visitor


def test_a_change_that_is_stopped_leaves_the_piece_as_it_was(patient: Visitor) -> None:
    connection, events = patient.begin("/api/change", asking(1, 2))
    with connection:
        name = next(event["name"] for event in events if event["event"] == "begin")
        assert patient.post("/api/stop", {"name": name}).events == [{"event": "stopping"}]
        *_, end = events
    assert (end["event"], end["code"]) == ("error", "not_rewritten")
    wait_until(lambda: not patient.studio.running)


def test_who_goes_away_while_bars_are_written_frees_the_place(patient: Visitor) -> None:
    connection, events = patient.begin("/api/change", asking(1, 2))
    assert next(events)["event"] == "begin"
    connection.close()
    events.close()
    wait_until(lambda: len(patient.studio.line) == 0)
    wait_until(lambda: not patient.studio.running)


def test_bars_that_take_too_long_are_refused_and_say_how_long() -> None:
    # Its time was over before it began.
    hasty = talkative(0.0, max_seconds=-1.0)
    change = Change(midi=SONG, first=1, last=2, sampling=SamplingConfig(), seed=0)
    with pytest.raises(PageError, match="bars 2 to 2: stopped") as refused:
        hasty.change(change, BEFORE, lambda _: None, lambda: False)
    assert refused.value.code == "not_rewritten"


def test_a_fault_leaves_the_line_to_the_next(page: Visitor, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory in /home/somebody")

    monkeypatch.setattr(page.studio.composer, "change", broken)
    end = page.post("/api/change", asking(1, 2)).events[-1]
    assert end["code"] == "fault" and "somebody" not in end["line"]
    # The answer may be read before the place is free.
    wait_until(lambda: not page.studio.running and len(page.studio.line) == 0)
