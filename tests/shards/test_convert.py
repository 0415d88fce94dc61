"""Files converted together end as each alone."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import MidiError
from meloformer.midi.filters import FilterSettings
from meloformer.shards.convert import ConvertedPiece, MidiBytes, convert_files, convert_midi
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.sources import open_source
from tests.midi.hand_written import metre, midi_file, note


def alone(file: MidiBytes, settings: ShardSettings) -> tuple:
    [outcome] = convert_files([file], settings)
    return comparable(outcome)


def comparable(outcome: ConvertedPiece | MidiError) -> tuple:
    if isinstance(outcome, MidiError):
        return outcome.reason, outcome.detail
    stored = outcome.stored
    return (
        stored.key,
        stored.ids_npy,
        json.loads(stored.facts_json),
        stored.num_tokens,
        stored.num_notes,
        stored.bar_starts.tolist(),
        outcome.tune,
        outcome.signature.tolist(),
        outcome.counts,
    )


def test_files_converted_together_end_as_each_alone(chorales: list[bytes]) -> None:
    bad = [
        b"no MIDI at all",
        midi_file([note(0, 480, 60)]),  # too short for the filters
        midi_file([metre(0, 3, 0), *(note(480 * n, 480, 60 + n % 5) for n in range(64))]),
    ]
    data = [chorales[0], bad[0], chorales[1], bad[1], bad[2], chorales[2], chorales[0]]
    files = [
        MidiBytes(data=each, name=f"{number}.mid", facts={"caption": str(number)})
        for number, each in enumerate(data)
    ]
    for pedal in ("on", "off"):
        settings = ShardSettings(pedal=pedal)
        together = [comparable(outcome) for outcome in convert_files(files, settings)]
        assert together == [alone(file, settings) for file in files]
        assert [len(outcome) > 2 for outcome in together] == [n not in bad for n in data]


def test_a_file_that_cannot_be_quantised_spoils_no_other(chorales: list[bytes]) -> None:
    off_grid = midi_file([metre(0, 1, 128), *(note(480 * n, 480, 60 + n % 5) for n in range(64))])
    files = [MidiBytes(data=data, name="") for data in (chorales[0], off_grid, chorales[1])]
    first, refused, last = convert_files(files, ShardSettings())
    assert isinstance(refused, MidiError)
    assert refused.reason == "metre_off_grid"
    for outcome, file in ((first, files[0]), (last, files[2])):
        assert comparable(outcome) == alone(file, ShardSettings())


def test_nothing_but_refusals_is_a_list_of_refusals(chorales: list[bytes]) -> None:
    settings = ShardSettings(filters=FilterSettings(min_notes=100_000))
    outcomes = convert_files([MidiBytes(data=data, name="") for data in chorales[:3]], settings)
    assert [isinstance(o, MidiError) and o.reason for o in outcomes] == ["too_few_notes"] * 3
    assert convert_files([], settings) == []


def test_tokens_are_stored_as_numpy_would_write_them(chorales: list[bytes]) -> None:
    stored = convert_midi(chorales[0], "", ShardSettings()).stored
    ids = np.load(io.BytesIO(stored.ids_npy))
    assert ids.shape == (stored.num_tokens,)
    file = io.BytesIO()
    np.save(file, ids)
    assert stored.ids_npy == file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["freedoom", "easyrpg_rtp"])
def test_a_real_corpus_converts_together_as_file_by_file(corpus: str, shared_corpora: Path) -> None:
    settings = replace(ShardSettings(), max_bar_tokens=1024)
    files = [
        MidiBytes(data=file.read(), name=file.name)
        for file in open_source(str(shared_corpora / f"{corpus}.tar.gz")).files()
    ]
    for first in range(0, len(files), 16):
        group = files[first : first + 16]
        together = [comparable(outcome) for outcome in convert_files(group, settings)]
        assert together == [alone(file, settings) for file in group]
