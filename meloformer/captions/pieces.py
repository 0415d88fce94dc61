"""Captions of the windows of some pieces: the work of one process."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from meloformer.captions.caption_set import USER_TEMPLATE, WindowCaptions
from meloformer.captions.compose import compose
from meloformer.captions.labels import Labels
from meloformer.captions.measure import measure_window
from meloformer.captions.patterns import PatternPool, held_out_names, pool_of, split_patterns
from meloformer.captions.settings import CaptionSettings
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import INDEX_OF
from meloformer.tokens.windows import cut_window, summary_windows

# Draws until a text differs from the others of its window; some windows have little to say.
_MOST_DRAWS = 4


@dataclass(frozen=True)
class PiecesJob:
    """Some pieces of a split, with what files of the user's say of each."""

    number: int
    split: str
    pieces: range
    sources: list[str]
    labels: list[Labels]
    user_captions: list[list[tuple[str, str]]]


@dataclass(frozen=True)
class PiecesDone:
    """Lines of all windows of a job, in their order, and what was counted."""

    lines: list[str]
    counts: dict[str, int]


@cache
def _folder(data: str) -> ShardFolder:
    return ShardFolder.open(data)


def caption_pieces(data: str, settings: CaptionSettings, job: PiecesJob) -> PiecesDone:
    """Lines of all windows of some pieces, in their order."""
    split = _folder(data).split(job.split)
    lines = []
    counts: Counter[str] = Counter()
    for row, piece in enumerate(job.pieces):
        ids, starts = split.read(piece), split.bar_starts(piece)
        windows = summary_windows(
            ids,
            starts,
            max_bars=settings.max_bars,
            max_tokens=settings.max_seq_len,
            overlap=settings.overlap,
        )
        held = {bar for first, last in windows for bar in range(first, last)}
        counts["bars_too_long"] += len(starts) - 1 - len(held)
        counts["pieces_with_user_captions"] += bool(job.user_captions[row])
        counts["labelled_pieces"] += bool(job.labels[row])
        for first, last in windows:
            music = decode(cut_window(ids, first, last, starts))
            if not music.num_notes:
                counts["silent_windows"] += 1
                continue
            chords = INDEX_OF[ids[starts[first:last]]]
            attributes = measure_window(music, chords, job.labels[row]).to_json()
            window = WindowCaptions(
                location=job.sources[row],
                key=split.key(piece),
                split=job.split,
                first_bar=first,
                last_bar=last,
                **write_captions(
                    attributes,
                    f"{split.key(piece)}/{first}/{last}",
                    settings,
                    job.user_captions[row],
                    for_judge=job.split != "train",
                ),
                attributes=attributes,
            )
            counts["windows"] += 1
            counts[f"windows_{job.split}"] += 1
            for language, texts in window.captions.items():
                counts[f"captions_{language}"] += len(texts)
            lines.append(window.to_line())
        counts["pieces"] += 1
    return PiecesDone(lines, dict(counts))


def write_captions(
    attributes: dict[str, Any],
    name: str,
    settings: CaptionSettings,
    user_captions: Iterable[tuple[str, str]] = (),
    *,
    for_judge: bool,
) -> dict[str, dict[str, list[Any]]]:
    """Captions, templates and mentions of one window, by language.

    Args:
        attributes: of the window, as JSON.
        name: of the window; with the seed it decides every draw.
        settings: languages, number, seed.
        user_captions: (language, text) that join in.
        for_judge: use the held-out templates alone.
    """
    written: dict[str, dict[str, list[Any]]] = {"captions": {}, "templates": {}, "mentions": {}}
    for language in settings.languages:
        patterns = _patterns(language, settings.held_out_templates, settings.seed)[for_judge]
        draws = random.Random(f"{settings.seed}/{name}/{language}")
        texts: list[str] = []
        templates: list[str] = []
        mentions: list[list[Any] | None] = []
        for number in range(settings.num_captions):
            detail = number / (settings.num_captions - 1) if settings.num_captions > 1 else None
            for _ in range(_MOST_DRAWS):
                caption = compose(attributes, language, draws, patterns, detail)
                if caption.text not in texts:
                    break
            texts.append(caption.text)
            templates.append(caption.template)
            mentions.append(caption.mentions)
        for spoken, text in user_captions:
            if spoken == language:
                texts.append(text)
                templates.append(USER_TEMPLATE)
                mentions.append(None)
        written["captions"][language] = texts
        written["templates"][language] = templates
        written["mentions"][language] = mentions
    return written


@cache
def _patterns(language: str, share: float, seed: int) -> tuple[PatternPool, PatternPool]:
    train, judge = split_patterns(language, held_out_names(language, share, seed))
    return pool_of(train), pool_of(judge)
