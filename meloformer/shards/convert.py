"""One MIDI file to one piece: a pure function of its bytes and the settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from meloformer.midi.filters import bar_seconds, check_quality, off_grid_share
from meloformer.midi.grid import METRES, TEMPOS_BPM
from meloformer.midi.quantise import QuantiseCounts, quantise_counted
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.shards.bar_tokens import check_bar_tokens
from meloformer.shards.content import note_key, tune_hash
from meloformer.shards.fingerprints import signature
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.tars import StoredPiece, ids_to_npy
from meloformer.tokens.attributes import Attributes, attributes_of
from meloformer.tokens.hid import encode
from meloformer.tokens.vocabulary import instrument_name, key_name
from meloformer.tokens.windows import bar_starts

_to_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode

NO_FACTS: Mapping[str, Any] = MappingProxyType({})


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


def convert_midi(
    data: bytes, name: str, settings: ShardSettings, extra: Mapping[str, Any] = NO_FACTS
) -> ConvertedPiece:
    """Read, quantise, filter, encode and describe one MIDI file.

    Args:
        data: bytes of the file.
        name: where it came from, for the facts.
        settings: settings of the build.
        extra: facts that the input brings along.

    Raises:
        MidiError: the file cannot become a piece.
    """
    piece = read_midi(data)
    quantised, counts = quantise_counted(piece, pedal=settings.pedal == "on")
    check_quality(quantised, settings.filters)
    attributes = attributes_of(quantised)
    ids = encode(quantised, attributes)
    starts = bar_starts(ids)
    check_bar_tokens(starts, settings)
    tune = tune_hash(quantised)
    flat_counts = _flat(counts)
    facts = (
        dict(extra)
        | describe(quantised, attributes, len(ids))
        | {
            "source": name,
            "tune": f"{tune:016x}",
            "off_grid": round(off_grid_share(piece), 4),
            "quantised": flat_counts,
        }
    )
    if piece.recovered:
        facts["recovered"] = piece.recovered
        flat_counts = flat_counts | {f"recovered_{piece.recovered}": 1}
    stored = StoredPiece(
        key=note_key(quantised),
        ids_npy=ids_to_npy(ids),
        facts_json=_to_json(facts).encode(),
        num_tokens=len(ids),
        num_notes=quantised.num_notes,
        bar_starts=starts,
    )
    return ConvertedPiece(stored=stored, tune=tune, signature=signature(piece), counts=flat_counts)


def describe(quantised: QuantisedPiece, attributes: Attributes, num_tokens: int) -> dict[str, Any]:
    """Facts of a piece that follow from its notes.

    Args:
        quantised: the piece.
        attributes: all that its prefix says.
        num_tokens: tokens of the whole piece.
    """
    tempo = quantised.bar_tempo
    in_order = dict.fromkeys(quantised.bar_metre.tolist())
    return {
        "num_tokens": num_tokens,
        "num_bars": quantised.num_bars,
        "num_notes": quantised.num_notes,
        "instruments": [instrument_name(index) for index in attributes.instruments],
        "metres": ["{}/{}".format(*METRES[index]) for index in in_order],
        "tempo_bpm": [float(TEMPOS_BPM[tempo.min()]), float(TEMPOS_BPM[tempo.max()])],
        "key": None if attributes.key is None else key_name(attributes.key),
        "duration_seconds": round(float(bar_seconds(quantised).sum()), 3),
    }


def _flat(counts: QuantiseCounts) -> dict[str, int]:
    """All counts under their own names; dataclasses.asdict copies deeply, which takes longer."""
    flat = vars(counts) | vars(counts.bars)
    del flat["bars"]
    return flat
