"""The pieces that are judged: unseen, each with a sentence whose wording training never saw."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from meloformer.captions.caption_set import WindowCaptions
from meloformer.errors import ConfigError
from meloformer.evaluation.control_rows import JudgedPiece
from meloformer.evaluation.control_scores import Wanted, wanted_of
from meloformer.plurals import counted
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.windows import bar_starts, cut_window

Language = Literal["en", "zh"]

# Where unseen pieces are taken from, the least looked at first.
_UNSEEN = ("test", "valid")
# Joins the patterns of which a sentence is made.
_JOINT = "+"


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """What is judged.

    Args:
        pieces: one window each, the first of its piece.
        notes: lines that say how many there are, and why not more.
    """

    pieces: list[JudgedPiece]
    notes: list[str]


def choose_pieces(
    captions: Iterable[WindowCaptions],
    facts: Mapping[str, Any],
    folder: ShardFolder,
    *,
    num_pieces: int,
    language: Language,
    seed: int,
) -> Chosen:
    """Draw unseen pieces and give each the sentence of unseen wording that says the most.

    Args:
        captions: of the windows of all splits.
        facts: what stands beside them; `held_out_templates` names the wordings kept from training.
        folder: the shards that the captions were written for.
        num_pieces: as many, if there are so many; first of the test split, then of the valid one.
        language: of the sentences.
        seed: of the draw.

    Which pieces are drawn, and in which order, depends on their keys and on the seed alone: other
    languages and other sentences are judged on the same pieces.

    Raises:
        ConfigError: no wording was held out, or fewer than two pieces are left.
    """
    held_out = set((facts.get("held_out_templates") or {}).get(language, ()))
    if not held_out:
        raise ConfigError(
            f"captions without held-out wordings in {language!r}: found none in captions.json; "
            "allowed: a set written with a share of --held_out_templates, so that the judge reads "
            "sentences that training never saw"
        )
    by_split, without = _unseen(captions, held_out, language)
    shards = _UnseenPieces(folder)
    pieces: list[JudgedPiece] = []
    notes = []
    for split in _UNSEEN:
        found = sorted(by_split[split], key=lambda one: _draw(seed, "piece", one.key))
        taken = found[: num_pieces - len(pieces)]
        pieces += [_judged(one, shards, held_out, language, seed) for one in taken]
        notes.append(f"{len(taken)} of {counted(len(found), 'piece')} of the {split} split")
    if len(pieces) < num_pieces:
        notes.append(
            f"{counted(len(pieces), 'unseen piece')} and not the {num_pieces} asked for: the "
            "splits hold no more with such a sentence"
        )
    if without:
        notes.append(f"{without} unseen pieces have no sentence of held-out wording alone")
    if len(pieces) < 2:
        raise ConfigError(
            f"{len(pieces)} unseen pieces with captions in {language!r}; allowed: 2 and more in "
            "the test and valid splits; write the captions of these shards with launch/caption.py"
        )
    return Chosen(pieces=pieces, notes=notes)


def _draw(seed: int, *words: str) -> int:
    """64 bits that follow from these words and from no other draw."""
    said = "/".join((str(seed), *words))
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big")


def _unseen(
    captions: Iterable[WindowCaptions], held_out: set[str], language: Language
) -> tuple[dict[str, list[WindowCaptions]], int]:
    """First windows of unseen pieces that have a sentence, by split, and how many have none."""
    by_split: dict[str, list[WindowCaptions]] = {split: [] for split in _UNSEEN}
    keys: Counter[str] = Counter()
    without = 0
    for window in captions:
        if window.split not in by_split or window.first_bar != 0 or keys[window.key]:
            continue
        keys[window.key] += 1
        if unseen_sentences(window, held_out, language):
            by_split[window.split].append(window)
        else:
            without += 1
    return by_split, without


def unseen_sentences(window: WindowCaptions, held_out: set[str], language: str) -> list[int]:
    """Captions of a window that are made of held-out patterns and of nothing else."""
    templates = window.templates.get(language, ())
    return [
        number
        for number, template in enumerate(templates)
        if template and set(template.split(_JOINT)) <= held_out
    ]


def _judged(
    window: WindowCaptions,
    shards: "_UnseenPieces",
    held_out: set[str],
    language: Language,
    seed: int,
) -> JudgedPiece:
    numbers = unseen_sentences(window, held_out, language)
    mentions = window.mentions.get(language) or [None] * len(window.captions[language])
    wishes = [wanted_of(window.attributes, mentions[number]) for number in numbers]
    most = max(map(num_wishes, wishes))
    best = [place for place, wish in enumerate(wishes) if num_wishes(wish) == most]
    place = best[_draw(seed, "sentence", language, window.key) % len(best)]
    number = numbers[place]
    return JudgedPiece(
        name=(window.split, window.key, window.first_bar, window.last_bar),
        ids=shards.window(window.split, window.key, window.last_bar),
        text=window.captions[language][number],
        template=window.templates[language][number],
        wanted=wishes[place],
    )


def num_wishes(wanted: Wanted) -> int:
    """How much a text says."""
    return sum(getattr(wanted, field.name) is not None for field in fields(wanted))


class _UnseenPieces:
    """Pieces of the unseen splits by their keys."""

    def __init__(self, folder: ShardFolder) -> None:
        self._name = folder.storage.name
        self._splits = {split: folder.split(split) for split in _UNSEEN}
        self._places = {
            split: {key: place for place, key in enumerate(index.keys())}
            for split, index in self._splits.items()
        }

    def window(self, split: str, key: str, last_bar: int) -> np.ndarray:
        """Tokens of a piece up to a bar.

        Raises:
            ConfigError: the shards hold no such piece.
        """
        place = self._places[split].get(key)
        if place is None:
            raise ConfigError(
                f"captions name piece {key} of the {split} split, which {self._name} does not "
                "hold; allowed: the shards that the captions were written for (--data)"
            )
        ids = self._splits[split].read(place)
        starts = bar_starts(ids)
        return ids if last_bar >= len(starts) - 1 else cut_window(ids, 0, last_bar, starts)
