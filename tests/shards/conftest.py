"""A folder of MIDI files with everything in it that a build must tell apart."""

from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from tests.shards.builds import build

NUM_CHORALES = 12


@pytest.fixture(scope="session")
def chorales() -> list[bytes]:
    """MIDI files of real chorales, all different."""
    paths = [path for path in default_corpus_paths() if path.parent.name == "bach"]
    return [score_to_midi(path) for path in paths[:NUM_CHORALES]]


@pytest.fixture(scope="session")
def chorale(chorales: list[bytes]) -> QuantisedPiece:
    """One of them on the grid."""
    return quantise(read_midi(chorales[0]))


@pytest.fixture(scope="session")
def midi_folder(chorales: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chorales, two copies of one, one a third higher, two broken files, and some that are no MIDI.

    The number of MIDI files is NUM_CHORALES + 5.
    """
    folder = tmp_path_factory.mktemp("midi")
    (folder / "deep" / "er").mkdir(parents=True)
    for number, data in enumerate(chorales):
        (folder / f"chorale {number:02d}.mid").write_bytes(data)
    (folder / "deep" / "again.MID").write_bytes(chorales[3])
    (folder / "deep" / "er" / "圣咏.midi").write_bytes(chorales[3])
    quantised = quantise(read_midi(chorales[5]))
    higher = replace(quantised, pitch=quantised.pitch + 4)
    (folder / "deep" / "transposed.mid").write_bytes(midi_bytes(to_piece(higher)))
    (folder / "deep" / "broken.mid").write_bytes(chorales[0][:100])
    (folder / "deep" / "empty.mid").write_bytes(b"")
    (folder / "LICENSE").write_text("free")
    (folder / "deep" / "notes.txt").write_text("no MIDI here")
    return folder


@pytest.fixture(scope="session")
def built(midi_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "shards"
    build(midi_folder, folder)
    return folder
