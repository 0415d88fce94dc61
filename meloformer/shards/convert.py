"""MIDI files to pieces: a pure function of their bytes and the settings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meloformer.errors import MidiError
from meloformer.midi.filters import bar_seconds, off_grid_shares, quality_errors
from meloformer.midi.grid import METRES, TEMPOS_BPM
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import QuantiseCounts, quantise_pieces
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.shards.bar_tokens import check_bar_tokens
from meloformer.shards.content import note_keys, tune_hashes
from meloformer.shards.fingerprints import signatures
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.tars import StoredPiece, ids_to_npy
from meloformer.tokens.attributes import Attributes, joined_attributes
from meloformer.tokens.hid import encode_pieces
from meloformer.tokens.vocabulary import instrument_name, key_name

_to_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode

# Holds the place of a piece that was read and is not converted yet.
_NOT_YET = MidiError("internal_error", "a file without an outcome")


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvertedPiece:
    """A file as a piece, with what the build needs to know of it.

    Args:
        stored: as it will lie in a shard.
        tune: hash that decides the split.
        signature: (NUM_HASHES,) uint32, by which near copies are found.
        counts: what quantising cost.
    """

    stored: StoredPiece
    tune: int
    signature: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class MidiBytes:
    """A file that was read.

    Args:
        data: bytes of the file.
        name: where it came from, for the facts.
        facts: what the input brings along.
    """

    data: bytes
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def convert_midi(data: bytes, name: str, settings: ShardSettings) -> ConvertedPiece:
    """Read, quantise, filter, encode and describe one MIDI file.

    Args:
        data: bytes of the file.
        name: where it came from, for the facts.
        settings: settings of the build.

    Raises:
        MidiError: the file cannot become a piece.
    """
    [outcome] = convert_files([MidiBytes(data=data, name=name)], settings)
    if isinstance(outcome, MidiError):
        raise outcome
    return outcome


def convert_files(
    files: Sequence[MidiBytes], settings: ShardSettings
) -> list[ConvertedPiece | MidiError]:
    """Convert several files in one pass over all their notes; each ends as it would alone.

    Args:
        files: the files; all their notes are held at once.
        settings: settings of the build.

    Returns:
        of each file the piece, or why it cannot become one.
    """
    outcomes: list[ConvertedPiece | MidiError] = []
    pieces: list[Piece] = []
    at: list[int] = []  # of each piece, the place of its outcome
    for file in files:
        try:
            pieces.append(read_midi(file.data))
        except MidiError as error:
            outcomes.append(_without_frames(error))
        else:
            at.append(len(outcomes))
            outcomes.append(_NOT_YET)
    if not pieces:
        return outcomes
    try:
        joined, counts = quantise_pieces(pieces, pedal=settings.pedal == "on")
    except MidiError as error:
        if len(files) == 1:
            return [_without_frames(error)]
        return [outcome for file in files for outcome in convert_files([file], settings)]
    kept: list[int] = []
    for index, fault in enumerate(quality_errors(joined, settings.filters)):
        if fault is None:
            kept.append(index)
        else:
            outcomes[at[index]] = fault
    if kept:
        stored = _describe_and_store(
            joined.select(kept),
            [pieces[index] for index in kept],
            [files[at[index]] for index in kept],
            [counts[index] for index in kept],
            settings,
        )
        for index, outcome in zip(kept, stored, strict=True):
            outcomes[at[index]] = outcome
    return outcomes


def _describe_and_store(
    joined: JoinedPieces,
    pieces: Sequence[Piece],
    files: Sequence[MidiBytes],
    counts: Sequence[QuantiseCounts],
    settings: ShardSettings,
) -> Iterator[ConvertedPiece | MidiError]:
    """The accepted pieces as they will lie in a shard, in their order."""
    attributes = joined_attributes(joined)
    encoded = encode_pieces(joined, attributes)
    described = describe_pieces(joined, attributes, [len(piece.ids) for piece in encoded])
    for piece, file, own_counts, tokens, facts, tune, key, own_signature, off_grid in zip(
        pieces,
        files,
        counts,
        encoded,
        described,
        tune_hashes(joined),
        note_keys(joined),
        signatures(pieces),
        off_grid_shares(pieces).tolist(),
        strict=True,
    ):
        try:
            check_bar_tokens(tokens.bar_starts, settings)
        except MidiError as error:
            yield _without_frames(error)
            continue
        flat_counts = _flat(own_counts)
        facts |= {
            "source": file.name,
            "tune": f"{tune:016x}",
            "off_grid": round(off_grid, 4),
            "quantised": flat_counts,
        }
        if piece.recovered:
            facts["recovered"] = piece.recovered
            flat_counts = flat_counts | {f"recovered_{piece.recovered}": 1}
        stored = StoredPiece(
            key=key,
            ids_npy=ids_to_npy(tokens.ids),
            facts_json=_to_json(dict(file.facts) | facts).encode(),
            num_tokens=len(tokens.ids),
            num_notes=facts["num_notes"],
            bar_starts=tokens.bar_starts,
        )
        yield ConvertedPiece(stored=stored, tune=tune, signature=own_signature, counts=flat_counts)


def describe(quantised: QuantisedPiece, attributes: Attributes, num_tokens: int) -> dict[str, Any]:
    """Facts of a piece that follow from its notes.

    Args:
        quantised: the piece.
        attributes: all that its prefix says.
        num_tokens: tokens of the whole piece.
    """
    return describe_pieces(JoinedPieces.of(quantised), [attributes], [num_tokens])[0]


def describe_pieces(
    joined: JoinedPieces, attributes: Sequence[Attributes], num_tokens: Sequence[int]
) -> list[dict[str, Any]]:
    """`describe` of each of several pieces."""
    first_bar = joined.first_bar[:-1]
    slowest = TEMPOS_BPM[np.minimum.reduceat(joined.music.bar_tempo, first_bar)]
    fastest = TEMPOS_BPM[np.maximum.reduceat(joined.music.bar_tempo, first_bar)]
    seconds = np.add.reduceat(bar_seconds(joined.music), first_bar)
    bar_metre, first = joined.music.bar_metre.tolist(), joined.first_bar.tolist()
    return [
        {
            "num_tokens": length,
            "num_bars": num_bars,
            "num_notes": num_notes,
            "instruments": [instrument_name(index) for index in said.instruments],
            "metres": [
                "{}/{}".format(*METRES[metre]) for metre in dict.fromkeys(bar_metre[start:end])
            ],
            "tempo_bpm": list(tempo_bpm),
            "key": None if said.key is None else key_name(said.key),
            "duration_seconds": round(duration, 3),
        }
        for length, said, num_bars, num_notes, start, end, duration, *tempo_bpm in zip(
            num_tokens,
            attributes,
            joined.num_bars.tolist(),
            joined.num_notes.tolist(),
            first[:-1],
            first[1:],
            seconds.tolist(),
            slowest.tolist(),
            fastest.tolist(),
            strict=True,
        )
    ]


def _without_frames(error: MidiError) -> MidiError:
    """An error to be kept: its traceback would keep all notes of the pass that met it."""
    return error.with_traceback(None)


def _flat(counts: QuantiseCounts) -> dict[str, int]:
    """All counts under their own names; dataclasses.asdict copies deeply, which takes longer."""
    flat = vars(counts) | vars(counts.bars)
    del flat["bars"]
    return flat
