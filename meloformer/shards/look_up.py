"""Finding a shard or a piece of a folder by what people call it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.content import KEY_LENGTH
from meloformer.shards.manifest import SPLITS
from meloformer.shards.maps import MappedIndex
from meloformer.shards.reader import ShardFolder
from meloformer.shards.tars import INDEX_SUFFIX
from meloformer.tokens.vocabulary import Kind, token, token_name

_NUMBERED = re.compile(rf"({'|'.join(SPLITS)}):(\d+)")
_ROW = re.compile(r"(.+/.+):(\d+)")
_MOST_NAMED = 3


@dataclass(frozen=True, eq=False)
class FoundPiece:
    """A piece and where it stands.

    Args:
        split: that it stands in.
        number: in the split.
        key: its name in the tar.
        facts: the JSON beside it.
        ids: (T,) uint16 token ids.
    """

    split: str
    number: int
    key: str
    facts: dict[str, Any]
    ids: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """All of it, tokens by their names."""
        return {
            "split": self.split,
            "number": self.number,
            "piece": self.key,
            "facts": self.facts,
            "tokens": [token_name(i) for i in self.ids.tolist()],
        }


def find_piece(folder: ShardFolder, name: str) -> FoundPiece:
    """A piece by what people call it.

    Args:
        folder: holds it.
        name: its key, a start of its key that no other has, `split:number`, or `shard:row`; both
            count from 0.

    Raises:
        ShardError: there is none, or more than one.
    """
    if numbered := _NUMBERED.fullmatch(name):
        return _numbered_piece(folder, numbered[1], int(numbered[2]))
    if in_shard := _ROW.fullmatch(name):
        return _piece_of_shard(folder, in_shard[1], int(in_shard[2]))
    # A whole key stands once; whether another one starts so, all shards have to say.
    at_most = 1 if len(name) >= KEY_LENGTH else None
    found = list(islice(_with_start(folder, name), at_most))
    if len(found) > 1:
        named = ", ".join(f"{split}:{n} {key}" for split, n, key in found[:_MOST_NAMED])
        raise ShardError(
            f"{folder.storage.name}: {len(found)} pieces have keys that start with {name!r} "
            f"({named}{' ...' if len(found) > _MOST_NAMED else ''}); give more of the key, or "
            "split:number"
        )
    if found:
        return _numbered_piece(folder, *found[0][:2])
    raise ShardError(
        f"{folder.storage.name}: no piece whose key starts with {name!r} among "
        f"{folder.manifest.num_pieces}; allowed: a key (the file names in its tars) or its start, "
        "train:0 for the first piece of a split, train/shard-000003:0 for the first of a shard"
    )


def _with_start(folder: ShardFolder, start: str) -> Iterator[tuple[str, int, str]]:
    """Split, number and key of the pieces whose key starts so."""
    for split in SPLITS:
        first = 0
        for entry in folder.manifest.splits[split]:
            keys = MappedIndex(folder.storage, entry).arrays.keys
            for row in np.flatnonzero(np.char.startswith(keys, start.encode())).tolist():
                yield split, first + row, keys[row].decode()
            first += entry.pieces


def _piece_of_shard(folder: ShardFolder, shard: str, row: int) -> FoundPiece:
    split, number = find_shard(folder, shard)
    pieces = folder.split(split).pieces_of_shard(number)
    if row >= len(pieces):
        raise ShardError(
            f"{folder.storage.name}: no piece {shard}:{row}; this shard holds {len(pieces)}, "
            "counted from 0"
        )
    return _numbered_piece(folder, split, pieces[row])


def _numbered_piece(folder: ShardFolder, split: str, number: int) -> FoundPiece:
    index = folder.split(split)
    if number >= index.num_pieces:
        raise ShardError(
            f"{folder.storage.name}: no piece {split}:{number}; {split} holds {index.num_pieces}, "
            "counted from 0"
        )
    return FoundPiece(split, number, index.key(number), index.facts(number), index.read(number))


def piece_text(piece: FoundPiece) -> str:
    """The tokens of a piece by their names, a line for each bar."""
    names = (
        ("\n" if token(i).kind == Kind.BAR else " ") + token_name(i) for i in piece.ids.tolist()
    )
    return "".join(names).strip()


def find_shard(folder: ShardFolder, name: str) -> tuple[str, int]:
    """Split of a shard, and its number there.

    Args:
        folder: holds it.
        name: of any of its files, with suffix or without.

    Raises:
        ShardError: there is none.
    """
    wanted = name.removesuffix(".tar").removesuffix(INDEX_SUFFIX)
    names = [entry.file.removesuffix(".tar") for entry in folder.manifest.shards()]
    for split in SPLITS:
        for number, entry in enumerate(folder.manifest.splits[split]):
            if entry.file.removesuffix(".tar") == wanted:
                return split, number
    raise ShardError(
        f"{folder.storage.name}: no shard {name!r} among {len(names)}; they are called "
        f"{names[0] if names else 'nothing: there is none'}"
    )


def pieces_of_shard(folder: ShardFolder, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Key, number and facts of each piece of a shard, in order."""
    index = folder.split(split)
    for piece in index.pieces_of_shard(number):
        yield {"piece": index.key(piece), "number": piece, "facts": index.facts(piece)}
