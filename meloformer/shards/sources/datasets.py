"""Folders as Hugging Face `datasets` writes them: which tables count, which files they name."""

import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np

from meloformer.shards.sources.kinds import Kind, kind_of
from meloformer.shards.sources.tables import Table

_STATE_NAME = "state.json"
_DICT_NAME = "dataset_dict.json"
_HUB_FOLDER = "data"  # where the hub keeps the Parquet of a dataset
# A folder that holds one of these may hold tables one level below.
MARKERS = frozenset({_DICT_NAME, _HUB_FOLDER})
_CACHE_PREFIX = "cache-"


def tables_that_count(folder: str, names: Iterable[str]) -> frozenset[str]:
    """Leave out what `datasets` keeps for itself: results of `map`, and indices.

    Args:
        folder: that holds the tables.
        names: of the tables.
    """
    names = list(names)
    listed = _listed_in_state(folder) if names else None
    return frozenset(
        name
        for name in names
        if not name.endswith(".arrow")
        or (name in listed if listed is not None else not name.startswith(_CACHE_PREFIX))
    )


def _listed_in_state(folder: str) -> frozenset[str] | None:
    try:
        with open(os.path.join(folder, _STATE_NAME), encoding="utf-8") as file:
            entries = json.load(file)["_data_files"]
        return frozenset(entry["filename"] for entry in entries)
    except (OSError, ValueError, LookupError, TypeError):  # not a folder of that kind
        return None


class NamedFiles:
    """Files that tables of a folder name: a walk leaves them to the rows, which know more of them.

    Eight bytes a file are kept.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._hashes = np.fromiter((_hash(path) for path in paths), np.uint64)
        self._hashes.sort()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, path: str) -> bool:
        wanted = np.uint64(_hash(path))
        position = int(np.searchsorted(self._hashes, wanted))
        return position < len(self._hashes) and bool(self._hashes[position] == wanted)


def named_files(
    folder: str, prefix: str, tables: Iterable[str], markers: Iterable[str]
) -> NamedFiles:
    """What the tables in a folder, and in the folders of its splits, name below it.

    Args:
        folder: to be walked.
        prefix: of its names in the source.
        tables: names of the tables in it.
        markers: those of MARKERS that are in it.
    """
    own = [os.path.join(folder, name) for name in tables]
    below = [
        os.path.join(folder, part, name)
        for part in _split_folders(folder, frozenset(markers))
        for name in sorted(
            tables_that_count(os.path.join(folder, part), _tables_in(os.path.join(folder, part)))
        )
    ]
    return NamedFiles(
        prefix + location
        for path in (*own, *below)
        for location in Table(path, path).files_named_below(folder)
    )


def _split_folders(folder: str, markers: frozenset[str]) -> list[str]:
    if _DICT_NAME in markers:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    is_hub = _HUB_FOLDER in markers and os.path.isdir(os.path.join(folder, _HUB_FOLDER))
    return [_HUB_FOLDER] if is_hub else []


def _tables_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if kind_of(entry.name) is Kind.TABLE]


def _hash(path: str) -> int:
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
