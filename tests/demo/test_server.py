"""The page over HTTP: a real server on a free port, a real model, nobody's mock."""

import base64
import json
import threading
from dataclasses import replace

import pytest

from meloformer.demo.composer import Composer
from meloformer.demo.score import bar_records
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.tokens.hid import decode
from tests.demo.pages import LIMITS, LONGER, SMALL, Visitor, serving, wait_until
from tests.midi.hand_written import midi_file, note, program

PLAIN_FILE = midi_file([note(0, 480, 60)], [program(40, 1), note(480, 480, 64, channel=1)])


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/words.json", "/icon.svg", "/no"])
def test_every_answer_forbids_frames_sniffing_and_foreign_scripts(page: Visitor, path) -> None:
    answer = page.get(path)
    assert answer.status == (404 if path == "/no" else 200)
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert "Python" not in answer.headers["Server"]


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/static/../server.py",
        "/..%2f..%2fserver.py",
        "/%2e%2e/server.py",
        "/server.py",
        "/__init__.py",
        "//etc/passwd",
        "/etc/passwd",
        "/page.js/../../server.py",
        "/page.js?file=/etc/passwd",
        "/..\\server.py",
        "/page.js%00.html",
        "/api/../api/facts",
        "/api/open/../../etc/passwd",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_path_reaches_the_disk(page: Visitor, path: str, method: str) -> None:
    said = page.raw(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 2\r\nConnection: close\r\n\r\n{}".encode()
    )
    assert said.startswith(b"HTTP/1.1 404 ")
    assert b"root:" not in said and b"import" not in said and b"[project]" not in said


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "localhost.evil.example", "10.0.0.7", "", "a b"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_made_to_mean_this_machine_is_refused(page, host, method) -> None:
    said = page.raw(
        f"{method} /api/facts HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 403 ") and b"foreign_host" in said


def test_no_host_and_two_hosts_are_refused(page: Visitor) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        said = page.raw(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
        assert said.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:7860", "LOCALHOST:9999"])
def test_this_machine_may_be_called_by_its_names_at_any_port(page: Visitor, host: str) -> None:
    assert page.get("/", Host=host).status == 200


def test_a_page_for_others_takes_addresses_and_the_name_it_was_given(composer: Composer) -> None:
    with serving(composer, host="0.0.0.0") as page:
        assert page.get("/", Host="192.168.1.5:7860").status == 200
        assert page.get("/", Host="evil.example").status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_site_cannot_make_the_browser_ask(page: Visitor, headers) -> None:
    answer = page.post("/api/write", SMALL, Host="localhost:5", **headers)
    assert answer.status == 403 and answer.refusal["code"] == "foreign_site"
    assert len(page.studio.line) == 0


def test_a_form_of_another_site_is_refused_for_its_type(page: Visitor) -> None:
    answer = page.post("/api/write", SMALL, Content_Type="text/plain")
    assert answer.status == 415


def test_no_other_origin_is_invited(page: Visitor) -> None:
    said = page.raw(
        b"OPTIONS /api/write HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
    )
    assert b" 501 " in said.splitlines()[0] and b"Access-Control" not in said


@pytest.mark.parametrize("path", ["/api/write", "/api/stop", "/api/open"])
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(page: Visitor, path: str) -> None:
    answer = page.post(path, b"x" * 60_000)
    assert answer.status == 413 and answer.refusal["code"] == "too_large"
    said = page.raw(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 99999999999\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "lengths",
    ["", "Content-Length: -1\r\n", "Content-Length: 2\r\nContent-Length: 3\r\n",
     "Transfer-Encoding: chunked\r\n", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"],
)  # fmt: skip
def test_a_body_without_one_honest_length_is_refused(page: Visitor, lengths: str) -> None:
    said = page.raw(
        "POST /api/write HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{lengths}\r\n{{}}".encode()
    )
    assert said.startswith(b"HTTP/1.1 411 ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 20_000, "no JSON"),
        (b'{"bars": 1' + b"0" * 6000 + b"}", "no JSON"),
        (b"[]", "a list"),
        ({"bars": 9}, "bars: found 9; allowed: a whole number from 1 to 8"),
        ({"bars": True}, "bars: found True"),
        ({"bars": 2.5}, "bars: found 2.5"),
        ({"bars": "x" * 9999}, "bars: found xxx"),
        (b'{"tempo": NaN}', "tempo: found nan"),
        (b'{"tempo": 1' + b"0" * 400 + b"}", "tempo: found 1000"),
        (b'{"temperature": -1' + b"0" * 400 + b"}", "temperature: found -1000"),
        ({"tempo": 5}, "tempo 5: allowed are"),
        ({"temperature": -1}, "temperature: found -1"),
        (b'{"temperature": 1e999}', "temperature: found inf"),
        ({"time_signature": "4/7"}, "time_signature 4/7: allowed are"),
        ({"time_signature": "²/4"}, "time_signature ²/4: allowed are"),
        ({"key": "H major"}, "key 'H major': allowed are"),
        ({"instruments": ["128"]}, "instruments 128: allowed are"),
        ({"instruments": "40"}, "instruments: found 40"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**60}, "seed: found"),
        ({"text": ["a"]}, "text: found"),
        ({"text": "a" * 2001}, "text: found aaa"),
        (b'{"text": "half a \\ud83c"}', "text: found half a"),
        ({"checkpoint": "/etc/passwd"}, "checkpoint: found an unknown field"),
    ],
)
def test_a_wish_that_is_none_is_refused_in_a_line(page: Visitor, body, said: str) -> None:
    answer = page.post("/api/write", body)
    assert answer.status == 400
    assert said in answer.refusal["line"] and len(answer.refusal["line"]) < 400


def test_a_fault_before_the_waiting_is_told_in_a_line(page: Visitor, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory in /home/somebody")

    monkeypatch.setattr(page.studio.reader, "read", broken)
    change = {"midi": base64.b64encode(PLAIN_FILE).decode(), "first": 0, "last": 1}
    answer = page.post("/api/change", change)
    assert answer.status == 500 and answer.refusal["code"] == "fault"
    assert "somebody" not in answer.refusal["line"]


@pytest.mark.parametrize("line", ["NO REQUEST AT ALL", "NONE", "GET / HTTP/2.0", "GET / HTTP/x"])
def test_what_is_no_request_has_an_answer_with_a_head(page: Visitor, line: str) -> None:
    said = page.raw(f"{line}\r\nHost: localhost\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 ") and b"X-Content-Type-Options: nosniff" in said


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_body_where_none_belongs_is_never_taken_for_a_request(page: Visitor, method) -> None:
    hidden = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for how in (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked"):
        asked = f"{method} /icon.svg HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n"
        said = page.raw(asked.encode() + hidden)
        assert said.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in said


def test_who_speaks_the_older_http_gets_events_without_chunks(page: Visitor) -> None:
    data = json.dumps(SMALL).encode()
    with page.connect() as connection:
        connection.sendall(
            b"POST /api/write HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        said = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head and b"Connection: close" in head
    events = [json.loads(line)["event"] for line in body.splitlines()]
    assert events == ["begin", "bar", "bar", "piece"]


def test_a_text_without_a_bridge_is_refused_in_a_line(page: Visitor) -> None:
    assert page.post("/api/write", {"text": "calm"}).refusal["code"] == "no_bridge"


def test_a_piece_comes_bar_by_bar_and_is_what_the_command_line_would_write(page: Visitor) -> None:
    begin, *bars, piece = page.post("/api/write", SMALL).events
    assert (begin["event"], begin["bars"], begin["seed"]) == ("begin", 2, 5)
    assert [(bar["event"], bar["bar"]) for bar in bars] == [("bar", 0), ("bar", 1)]

    controls = ControlConfig(bars=2, instruments=("40",))
    [ids] = generate(page.studio.composer.model, controls, SamplingConfig(), seed=5)
    expected = quantise(to_piece(decode(ids)))
    assert piece["event"] == "piece"
    assert quantise(read_midi(base64.b64decode(piece["midi"]))) == expected
    as_json = json.loads(json.dumps(bar_records(expected)))
    assert piece["bars"] == as_json
    # A note may be cut later, where it sounds into another one; all else stands at once.
    heard = [[n[:3] for n in bar["notes"]] for bar in bars]
    assert heard == [[n[:3] for n in bar["notes"]] for bar in as_json]


def test_the_last_bar_is_written_after_the_first_has_been_sent(page: Visitor) -> None:
    connection, events = page.begin("/api/write", LONGER)
    with connection:
        assert next(events)["event"] == "begin"
        assert next(events)["event"] == "bar"
        # It still has the line's first place: the piece is not finished.
        assert len(page.studio.line) == 1
        assert [event["event"] for event in events] == ["bar"] * 7 + ["piece"]


def test_a_piece_that_is_stopped_keeps_its_finished_bars(page: Visitor) -> None:
    connection, events = page.begin("/api/write", LONGER)
    with connection:
        name = next(events)["name"]
        next(event for event in events if event["notes"])
        assert page.post("/api/stop", {"name": name}).events == [{"event": "stopping"}]
        *_, piece = events
    assert piece["event"] == "piece" and 1 <= len(piece["bars"]) < 8
    assert page.post("/api/stop", {"name": name}).refusal["code"] == "nothing_to_stop"


def test_a_file_comes_back_as_bars_and_as_a_file(page: Visitor) -> None:
    [piece] = page.post("/api/open", PLAIN_FILE).events
    expected = quantise(read_midi(PLAIN_FILE))
    assert quantise(read_midi(base64.b64decode(piece["midi"]))) == expected
    [bar] = piece["bars"]
    assert bar["metre"] == [4, 4] and bar["tempo"] == 120 and bar["steps"] == 96
    assert [n[:4] for n in bar["notes"]] == [[1, 0, 60, 24], [41, 24, 64, 24]]


@pytest.mark.parametrize("data", [b"no MIDI", b"MThd" + bytes(40), midi_file([])])
def test_a_file_that_is_none_is_refused_in_a_line(page: Visitor, data: bytes) -> None:
    assert page.post("/api/open", data).refusal["code"] == "bad_midi"


def test_who_waits_is_told_the_place_and_who_finds_the_line_full_is_refused(page: Visitor) -> None:
    with page.studio.line.join():  # somebody is served
        connection, events = page.begin("/api/write", SMALL)
        assert next(events) == {"event": "waiting", "before": 1}
        full = page.post("/api/write", SMALL)
        assert full.status == 503 and full.refusal["code"] == "queue_full"
    with connection:
        assert [event["event"] for event in events] == ["begin", "bar", "bar", "piece"]


def test_who_goes_away_while_waiting_frees_the_place(page: Visitor) -> None:
    with page.studio.line.join():
        connection, events = page.begin("/api/write", SMALL)
        assert next(events)["before"] == 1
        assert len(page.studio.line) == 2
        connection.close()
        events.close()
        wait_until(lambda: len(page.studio.line) == 1)


def test_who_goes_away_while_it_is_written_frees_the_place(page: Visitor) -> None:
    connection, events = page.begin("/api/write", LONGER)
    assert next(events)["event"] == "begin"
    connection.close()
    events.close()
    wait_until(lambda: len(page.studio.line) == 0)
    assert not page.studio.running


def test_what_the_page_is_told_names_no_path_of_this_machine(page: Visitor, run_folder) -> None:
    assert run_folder.name not in page.get("/api/facts").body.decode()


def test_more_connections_than_there_is_room_for_are_turned_away(composer: Composer) -> None:
    with serving(composer, replace(LIMITS, connections=1)) as page:
        with page.connect() as first:
            first.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert first.recv(12) == b"HTTP/1.1 200"
            assert page.get("/").status == 503
        wait_until(lambda: page.get("/").status == 200)


def test_a_connection_for_which_there_is_no_thread_leaves_its_room(
    composer: Composer, monkeypatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(composer, replace(LIMITS, connections=1)) as page:
        with monkeypatch.context() as changed:
            changed.setattr(threading.Thread, "start", none_left)
            assert page.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        wait_until(lambda: page.get("/").status == 200)
