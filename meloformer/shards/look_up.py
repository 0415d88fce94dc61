"""Finding a shard or a piece of a folder by what people call it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.manifest import SPLITS
from meloformer.shards.maps import MappedIndex
from meloformer.shards.reader import ShardFolder
from meloformer.shards.tars import INDEX_SUFFIX
from meloformer.tokens.vocabulary import Kind, token, token_name

_NUMBERED = re.compile(rf"({'|'.join(SPLITS)}):(\d+)")


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
    """A piece by its key, by the start of its key (then the first one), or as `split:number`.

    Raises:
        ShardError: there is none.
    """
    if numbered := _NUMBERED.fullmatch(name):
        return _numbered_piece(folder, numbered[1], int(numbered[2]))
    for split in SPLITS:
        first = 0
        for entry in folder.manifest.splits[split]:
            keys = MappedIndex(folder.storage, entry).arrays.keys
            found = np.flatnonzero(np.char.startswith(keys, name.encode()))
            if len(found):
                return _numbered_piece(folder, split, first + int(found[0]))
            first += entry.pieces
    raise ShardError(
        f"{folder.storage.name}: no piece whose key starts with {name!r} among "
        f"{folder.manifest.num_pieces}; keys are the file names in its tars, and train:0 is the "
        "first piece of a split"
    )


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
