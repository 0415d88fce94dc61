from collections.abc import Iterator

import pytest

from meloformer.demo.border import PageError
from meloformer.demo.reading import MidiReader
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.shards.guard import FileLimits
from tests.midi.hand_written import midi_file, note, tempo

FILE = midi_file([tempo(0, 400_000), note(0, 480, 60), note(960, 240, 67)])
# A minute of work for a reader: as many notes as are allowed, and none of them plain.
LONG = midi_file([note(i * 10, 15, i % 128) for i in range(60_000)])


@pytest.fixture(scope="module")
def reader() -> Iterator[MidiReader]:
    made = MidiReader(FileLimits(file_seconds=20, file_megabytes=512))
    yield made
    made.close()


def test_music_comes_back_as_it_was_read_here(reader: MidiReader) -> None:
    assert reader.read(FILE) == quantise(read_midi(FILE))


def test_a_file_without_music_is_refused_with_its_reason(reader: MidiReader) -> None:
    with pytest.raises(PageError, match="the MIDI file: no_notes") as refused:
        reader.read(midi_file([]))
    assert refused.value.values["reason"] == "no_notes"


def test_a_reader_that_dies_costs_one_file_and_not_the_next(reader: MidiReader) -> None:
    reader._spare.kill()
    with pytest.raises(PageError, match="the MIDI file: crash"):
        reader.read(FILE)
    assert reader.read(FILE).num_notes == 2


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (FileLimits(file_seconds=0.001, file_megabytes=512), "timeout"),
        (FileLimits(file_seconds=20, file_megabytes=1), "too_much_memory"),
    ],
)
def test_a_file_that_takes_too_much_is_refused(limits: FileLimits, reason: str) -> None:
    reader = MidiReader(limits)
    try:
        with pytest.raises(PageError) as refused:
            reader.read(LONG)
    finally:
        reader.close()
    assert refused.value.values["reason"] in (reason, "crash")
