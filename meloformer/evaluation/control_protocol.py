"""text2midi's protocol: captions of a user's file, and the five numbers that its paper states.

TB, TBT, CK and CKD as `control_scores` has them, against the tempo and the key that the line of
the file states (MidiCaps does), or else against those of the piece that it names; CR is the mean
compression ratio of what was written.

Source: Bhandari et al. 2025, Text2midi, section "Objective evaluation"; the bins and the relative
key are those of Melechovsky et al. 2024, Mustango.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.captions.lines import read_objects, text_of
from meloformer.captions.locations import ByLocation
from meloformer.errors import ConfigError
from meloformer.evaluation.control_compression import compression_ratio
from meloformer.evaluation.control_intervals import Interval, interval
from meloformer.evaluation.control_pieces import Chosen
from meloformer.evaluation.control_rows import Generated, JudgedPiece, Row
from meloformer.evaluation.control_scores import Wanted, hear
from meloformer.midi.harmony import estimate_key
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import NUM_KEYS, key_name

# What the paper calls each metric.
PROTOCOL = {"TB": "tempo_bin", "TBT": "tempo_near", "CK": "key", "CKD": "key_near"}
# Splits whose pieces a user's line may name.
_UNSEEN = ("test", "valid")
_FLATS = {"db": "c#", "d#": "eb", "gb": "f#", "g#": "ab", "a#": "bb", "cb": "b", "fb": "e"}
_KEYS = {key_name(index).lower(): index for index in range(NUM_KEYS)}
_FLAG = "--captions"
_NO_PIECE = np.zeros(0, np.uint16)


def protocol_pieces(
    path: Path, folder: ShardFolder, *, num_pieces: int, num_bars: int, seed: int
) -> Chosen:
    """Captions of a user's file as pieces to be judged.

    Args:
        path: a JSON object a line with `location` and `caption`, and perhaps `tempo` and `key`; a
            line whose `test_set` is false is left out.
        folder: shards; lines that name an unseen piece of them need state no tempo and no key,
            lines that name a piece of the train split are left out.
        num_pieces: a seeded draw of as many, if there are more.
        num_bars: bars that are written for each.
        seed: of the draw.

    Raises:
        ConfigError: the file cannot be read, a line lacks a field or states an impossible one, or
            fewer than two lines are left.
    """
    unseen, seen = _sources(folder)
    pieces: list[JudgedPiece] = []
    num_seen = num_unknown = num_train = 0
    for number, entry in read_objects(path, _FLAG):
        where = f"{_FLAG} {path}, line {number}"
        location, text = (text_of(entry, (name,), where) for name in ("location", "caption"))
        if entry.get("test_set") is False:
            num_train += 1
        elif seen.find(location):
            num_seen += 1
        else:
            found = unseen.find(location)
            ids = folder.split(found[0][0]).read(found[0][1]) if found else _NO_PIECE
            wanted = _wanted(entry, ids, where)
            if wanted == Wanted():
                num_unknown += 1
                continue
            name = (found[0][0] if found else "", location, 0, num_bars)
            pieces.append(
                JudgedPiece(name=name, ids=ids, text=text, template="user", wanted=wanted)
            )
    notes = [f"{len(pieces)} lines of {path.name}"]
    for count, why in (
        (num_train, "their test_set is false"),
        (num_seen, "their piece stands in the train split"),
        (num_unknown, "they state no tempo and no key, and the shards hold no such piece"),
    ):
        if count:
            notes.append(f"{count} lines left out: {why}")
    if len(pieces) > num_pieces:
        chosen = sorted(np.random.default_rng(seed).permutation(len(pieces))[:num_pieces].tolist())
        pieces = [pieces[place] for place in chosen]
        notes.append(f"{num_pieces} of them drawn")
    if len(pieces) < 2:
        raise ConfigError(
            f"{_FLAG} {path}: found {len(pieces)} lines to judge ({'; '.join(notes[1:])}); "
            "allowed: 2 and more that state `tempo` or `key`, or name an unseen piece of --data"
        )
    return Chosen(pieces=pieces, notes=notes)


def _sources(folder: ShardFolder) -> tuple[ByLocation[tuple[str, int]], ByLocation[None]]:
    """Unseen pieces (split, place) by the path of their file, and training pieces likewise."""
    unseen: list[tuple[str, tuple[str, int]]] = []
    for split in _UNSEEN:
        index = folder.split(split)
        unseen += [
            (str(index.facts(place)["source"]), (split, place)) for place in range(index.num_pieces)
        ]
    train = folder.split("train")
    seen = [(str(train.facts(place)["source"]), None) for place in range(train.num_pieces)]
    return ByLocation(unseen), ByLocation(seen)


def _wanted(entry: dict[str, Any], ids: np.ndarray, where: str) -> Wanted:
    tempo, key = entry.get("tempo"), entry.get("key")
    if tempo is not None and not (isinstance(tempo, int | float) and 0 < tempo < math.inf):
        raise ConfigError(f"{where}: found tempo {tempo!r}; allowed: quarters per minute above 0")
    key_index = None if key is None else parse_key(str(key))
    if key is not None and key_index is None:
        raise ConfigError(f'{where}: found key {key!r}; allowed are such as "F# minor"')
    if len(ids):
        music = decode(ids)
        tempo = hear(music).tempo_bpm if tempo is None else tempo
        key_index = estimate_key(music) if key_index is None else key_index
    return Wanted(tempo_bpm=None if tempo is None else float(tempo), key=key_index)


def parse_key(text: str) -> int | None:
    """Index of a key by its name, however its tonic is spelt; None of no key.

    >>> parse_key("Db major"), parse_key("f# Minor"), parse_key("H dur")
    (1, 18, None)
    """
    tonic, _, mode = " ".join(text.lower().split()).partition(" ")
    return _KEYS.get(f"{_FLATS.get(tonic, tonic)} {mode}")


def protocol_numbers(row: Row, written: Sequence[Generated], *, seed: int) -> dict[str, Interval]:
    """TB, TBT, CK and CKD as shares, CR as a ratio.

    Args:
        row: of the pieces that were written.
        written: the pieces.
        seed: of the intervals.
    """
    found = {name: interval(row.scores[metric], seed=seed) for name, metric in PROTOCOL.items()}
    ratios = np.array([compression_ratio(decode(one.ids)) for one in written])
    return found | {"CR": interval(ratios, seed=seed, is_share=False)}
