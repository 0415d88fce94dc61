"""How much of judged pieces stands in the training set: single bars, runs of bars, whole tunes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from meloformer.evaluation.copied_bars import CopySearch, Likeness, bar_contents
from meloformer.evaluation.judged_pieces import JudgedPiece, PieceSet
from meloformer.evaluation.tune_overlap import ONE_TUNE, tune_overlap
from meloformer.midi.render import to_piece
from meloformer.shards.fingerprints import NO_FINGERPRINT
from meloformer.shards.known import load_copies
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.tokens.hid import decode

LIKENESSES: tuple[Likeness, ...] = ("verbatim", "transposed")

# Pieces that share fewer of their figures than this are not looked at note by note.
_LEAST_AGREEMENT = 0.05

OnPieces = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Copies:
    """What of a set of pieces stands in the training set.

    Args:
        shares: (P,) by likeness: of each piece's bars of notes enough, those that do; nan where a
            piece has no such bar.
        longest_run: by likeness, most bars in a row that stand in a row there.
        overlap: (P,) share of a passage that coincides with the training piece that is most like;
            0 where none is.
        nearest: (P,) key of that piece, "" where none is like it.
    """

    shares: dict[str, np.ndarray]
    longest_run: dict[str, int]
    overlap: np.ndarray
    nearest: list[str]

    @property
    def tunes(self) -> np.ndarray:
        """(P,) 1 where a piece is a version of a training piece, else 0."""
        return (self.overlap >= ONE_TUNE).astype(np.float64)


def find_copies(sets: Sequence[PieceSet], folder: ShardFolder, on_pieces: OnPieces) -> list[Copies]:
    """Look for the bars and the tunes of all sets in the training split, which is read once.

    Args:
        sets: pieces that are judged.
        folder: shards whose training split is looked through.
        on_pieces: told how far it is.

    Raises:
        ShardError: a shard is damaged.
    """
    pieces = [piece for one in sets for piece in one.pieces]
    train = folder.split("train")
    searches = {
        likeness: CopySearch([bar_contents(piece.music, likeness) for piece in pieces])
        for likeness in LIKENESSES
    }
    for number in range(train.num_pieces):
        music = decode(train.read(number))
        for likeness, search in searches.items():
            search.look_into([bar_contents(music, likeness)])
        on_pieces(number + 1, train.num_pieces)
    overlap, nearest = _tunes(pieces, folder, train)
    found, start = [], 0
    for one in sets:
        mine = slice(start, start + len(one.pieces))
        counts = {likeness: search.count(mine) for likeness, search in searches.items()}
        found.append(
            Copies(
                shares={
                    likeness: np.divide(
                        count.num_found,
                        count.num_bars,
                        out=np.full(len(one.pieces), np.nan),
                        where=count.num_bars > 0,
                    )
                    for likeness, count in counts.items()
                },
                longest_run={likeness: count.longest_run for likeness, count in counts.items()},
                overlap=overlap[mine],
                nearest=nearest[mine],
            )
        )
        start = mine.stop
    return found


def _tunes(
    pieces: Sequence[JudgedPiece], folder: ShardFolder, train: SplitIndex
) -> tuple[np.ndarray, list[str]]:
    """Overlap of each piece with the training piece that shares most figures, and its key."""
    overlap, nearest = np.zeros(len(pieces)), [""] * len(pieces)
    if not train.num_pieces:
        return overlap, nearest
    trained_PH = np.concatenate(
        [
            load_copies(
                folder.storage.fetch(
                    entry.signatures_file,
                    num_bytes=entry.signatures_bytes,
                    sha256=entry.signatures_sha256,
                ),
                entry,
            )["signature"]
            for entry in train.entries
        ]
    )
    is_told_P = (trained_PH != NO_FINGERPRINT).any(axis=1)
    for number, piece in enumerate(pieces):
        if (piece.signature == NO_FINGERPRINT).all():
            continue
        agreement_P = (trained_PH == piece.signature).mean(axis=1) * is_told_P
        best = int(agreement_P.argmax())
        if agreement_P[best] >= _LEAST_AGREEMENT:
            other = to_piece(decode(train.read(best)))
            overlap[number] = tune_overlap(to_piece(piece.music), other)
            nearest[number] = train.key(best)
    return overlap, nearest
