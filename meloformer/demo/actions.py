"""What a page can ask for: a piece, bars of one, an end before its time, a file opened."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from meloformer.demo.border import PageError, read_json
from meloformer.demo.composer import Composer
from meloformer.demo.events import EventStream
from meloformer.demo.reading import MidiReader
from meloformer.demo.score import bar_records, piece_record
from meloformer.demo.settings import PageLimits
from meloformer.demo.waiting_line import VisitorGoneError, WaitingLine
from meloformer.demo.wishes import MAX_TEXT, Fields, read_change, read_wish
from meloformer.generation.notices import Notice
from meloformer.midi.grid import METRES, NUM_INSTRUMENTS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.instrument_names import FAMILIES, instrument
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import NUM_KEYS, key_name

# Of a wish without a file: its text in escaped JSON, and the names of all instruments.
_MOST_WISH_BYTES = 32_768


@dataclass
class Studio:
    """Everything that the answers need; one for all visitors.

    Args:
        composer: writes.
        reader: reads files.
        limits: of one visitor.
        line: before the composer.
        running: what ends each piece that is being written early, by a name that only the page
            that waits for it knows.
    """

    composer: Composer
    reader: MidiReader
    limits: PageLimits
    line: WaitingLine = field(init=False)
    running: dict[str, threading.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.line = WaitingLine(self.limits.queue)

    @contextmanager
    def running_for(self, stream: EventStream) -> Iterator[tuple[str, Callable[[], bool]]]:
        """While something is written: a name to end it by, and whether it is to end.

        The latter raises VisitorGoneError where nobody waits any more.
        """
        name, ended = secrets.token_urlsafe(), threading.Event()
        self.running[name] = ended

        def is_over() -> bool:
            if stream.is_gone():
                raise VisitorGoneError
            return ended.is_set()

        try:
            yield name, is_over
        finally:
            del self.running[name]

    def facts(self) -> dict[str, Any]:
        """What the page must know before it can ask: about the model, and what is allowed."""
        model, guide = self.composer.model, self.composer.guide
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "layers": model.config.num_layers,
            "bridge": guide is not None,
            "strict": guide is not None and guide.bridge.heads is not None,
            "fills": model.config.fill_rate > 0,
            "max_bars": self.limits.max_bars,
            "max_upload_bytes": self.limits.max_upload_bytes,
            "max_text": MAX_TEXT,
            "steps_per_quarter": STEPS_PER_QUARTER,
            "tempo": [float(TEMPOS_BPM[0]), float(TEMPOS_BPM[-1])],
            "metres": [f"{numerator}/{denominator}" for numerator, denominator in METRES],
            "keys": [key_name(index) for index in range(NUM_KEYS)],
            "families": [[family.en, family.zh] for family in FAMILIES],
            "instruments": [
                [instrument(index).en, instrument(index).zh] for index in range(NUM_INSTRUMENTS)
            ],
        }


# From what was asked to what runs when it is the visitor's turn.
Work = Callable[[EventStream], None]


@dataclass(frozen=True)
class Action:
    """Something that a page can ask for.

    Args:
        prepare: from the body of the request to the work; refuses before anybody waits.
        most_bytes: of the body.
        writes: the work needs the composer, and so a place in the line.
    """

    prepare: Callable[[Studio, bytes], Work]
    most_bytes: Callable[[PageLimits], int]
    writes: bool = True


def _prepare_write(studio: Studio, body: bytes) -> Work:
    wish = read_wish(read_json(body), studio.limits.max_bars)

    def work(stream: EventStream) -> None:
        def tell_bar(bar: int, music: QuantisedPiece) -> None:
            [record] = bar_records(music, bar)
            stream.send({"event": "bar", **record})

        with studio.running_for(stream) as (name, is_over):

            def tell_start(num_bars: int) -> None:
                stream.send({"event": "begin", "bars": num_bars, "seed": wish.seed, "name": name})

            music = studio.composer.write(wish, tell_start, tell_bar, is_over)
        stream.send(piece_record(music, wish.seed))

    return work


def _prepare_change(studio: Studio, body: bytes) -> Work:
    limits = studio.limits
    change = read_change(read_json(body), limits.max_bars, limits.max_upload_bytes)
    # Before the line: nobody waits for a file of another's, or for bars that are not there.
    before = studio.reader.read(change.midi)
    change.check_bars(before.num_bars)

    def work(stream: EventStream) -> None:
        def tell_notice(notice: Notice) -> None:
            # The page has words of its own: it counts bars from 1, in two languages.
            stream.send({"event": "notice", "code": notice.code.value})

        with studio.running_for(stream) as (name, is_over):
            stream.send({"event": "begin", "seed": change.seed, "name": name})
            music = studio.composer.change(change, before, tell_notice, is_over)
        stream.send(piece_record(music, change.seed))

    return work


def _prepare_open(studio: Studio, body: bytes) -> Work:
    if not body:
        raise PageError("bad_request", "the request: found no file; allowed: a MIDI file")
    return lambda stream: stream.send(piece_record(studio.reader.read(body)))


def _prepare_stop(studio: Studio, body: bytes) -> Work:
    fields = Fields(read_json(body))
    ended = studio.running.get(fields.text("name", 64) or "")
    fields.end()
    if ended is None:
        raise PageError(
            "nothing_to_stop", "nothing is being written by that name", HTTPStatus.NOT_FOUND
        )
    ended.set()
    return lambda stream: stream.send({"event": "stopping"})


ACTIONS: dict[str, Action] = {
    "/api/write": Action(_prepare_write, lambda limits: _MOST_WISH_BYTES),
    "/api/change": Action(
        _prepare_change,
        # The file, in base64.
        lambda limits: _MOST_WISH_BYTES + 4 * limits.max_upload_bytes // 3,
    ),
    "/api/open": Action(_prepare_open, lambda limits: limits.max_upload_bytes, writes=False),
    "/api/stop": Action(_prepare_stop, lambda limits: _MOST_WISH_BYTES, writes=False),
}
