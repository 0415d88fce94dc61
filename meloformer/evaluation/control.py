"""The judge: does a text decide what a trained MuseFormer writes through a trained bridge?

Pieces that training never saw, described in wordings that it never saw, are written anew from
their texts, from others' texts, from none and from their own summaries; what is heard is held
against what each text asks for. Beside it: how bars come back, and how different two pieces of one
text are; what summaries do to the likelihood of the real notes, and whether a text finds its piece
among others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meloformer.captions.caption_set import facts_path, read_captions, read_facts
from meloformer.errors import ConfigError
from meloformer.evaluation.control_generator import BridgeGenerator
from meloformer.evaluation.control_intervals import Interval, derangement, interval
from meloformer.evaluation.control_likelihood import (
    Retrieval,
    bare_bars,
    likelihood_differences,
    nats_per_note,
    retrieve,
    true_summaries,
)
from meloformer.evaluation.control_likeness import Likeness, OnProgress, judge_likeness
from meloformer.evaluation.control_pieces import Chosen, Language, choose_pieces
from meloformer.evaluation.control_protocol import protocol_numbers, protocol_pieces
from meloformer.evaluation.control_rows import (
    WAYS,
    Generated,
    JudgedPiece,
    Row,
    Way,
    judge_row,
    judge_sections,
    reference_row,
    rows_of,
)
from meloformer.shards.reader import ShardFolder

_NO_TRUE_SUMMARIES = (
    "rows of true summaries, their likelihood and retrieval not run: the bridge's answers enter at "
    "the input, where a piece has no summaries of its own"
)


@dataclass(frozen=True, kw_only=True)
class ControlJudgeConfig:
    """What is judged, and how much of it.

    Args:
        captions: captions.jsonl of launch/caption.py; or any JSON lines with location and caption,
            for text2midi's protocol.
        n: unseen pieces, if there are so many.
        language: of the texts.
        bars: bars that are written of each piece, at most.
        sections: judge pieces of two texts too, each part against its own.
        group_size: pieces among which a text looks for its own.
        variety_n: pieces whose text is written once more, to see how different two pieces of one
            text are; 0: none.
    """

    captions: Path | None = None
    n: int = 300
    language: Language = "en"
    bars: int = 16
    sections: bool = False
    group_size: int = 100
    variety_n: int = 64

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("n", self.n, 2),
            ("bars", self.bars, 1),
            ("group_size", self.group_size, 2),
            ("variety_n", self.variety_n, 0),
        ):
            if value < least:
                raise ConfigError(f"--{flag} {value}: allowed are {least} and above")


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """All that was found.

    Args:
        pieces: that were judged.
        notes: lines that say how many there are, and what was not judged, and why.
        rows: of the table, the real pieces first.
        likeness: of bars to bars, by row.
        sections: rows of parts; empty where none were asked for.
        nats: nats per note with each kind of summaries, piece by piece.
        differences: of these from those without summaries.
        retrieval: None where no piece has summaries to be found by.
        protocol: numbers of text2midi's protocol, by row; empty of a caption set of ours.
    """

    pieces: list[JudgedPiece]
    notes: list[str]
    rows: list[Row]
    likeness: Likeness
    sections: dict[str, Row] = field(default_factory=dict)
    nats: dict[str, np.ndarray] = field(default_factory=dict)
    differences: dict[str, Interval] = field(default_factory=dict)
    retrieval: Retrieval | None = None
    protocol: dict[str, dict[str, Interval]] = field(default_factory=dict)


def judge_control(
    generator: BridgeGenerator,
    folder: ShardFolder,
    config: ControlJudgeConfig,
    *,
    seed: int,
    on_progress: OnProgress = lambda part, done, total: None,
) -> Findings:
    """Judge a model and its bridge.

    Args:
        generator: both, with the text encoder.
        folder: the shards that the captions were written for.
        config: what is judged.
        seed: of draws, noise, sampling and intervals.
        on_progress: told after each batch.

    Raises:
        ConfigError: captions that cannot be judged by.
    """
    if config.captions is None:
        raise ConfigError("--captions: found none; allowed: captions.jsonl of launch/caption.py")
    if not facts_path(config.captions).is_file():
        return _by_protocol(generator, folder, config, config.captions, seed, on_progress)
    chosen = choose_pieces(
        read_captions(config.captions),
        read_facts(config.captions),
        folder,
        num_pieces=config.n,
        language=config.language,
        seed=seed,
    )
    pieces = chosen.pieces
    windows = [bare_bars(piece.ids, config.bars) for piece in pieces]
    on_progress("summaries", 0, len(pieces))
    own = true_summaries(generator.model, windows) if has_true_summaries(generator) else []
    of_piece = {piece.name: summaries for piece, summaries in zip(pieces, own, strict=False)}

    true = (lambda piece: of_piece[piece.name]) if own else None
    rows, written = _write_rows(pieces, generator, config, seed, on_progress, true)
    likeness = _likeness(pieces, written, generator, config, seed, on_progress)
    sections = {}
    if config.sections:
        on_progress("sections", 0, len(pieces))
        half = max(config.bars // 2, 1)
        sections = judge_sections(pieces, generator, section_bars=half, seed=seed)
    on_progress("likelihood", 0, len(pieces))
    texts = from_texts(generator, pieces, config.bars, seed)
    nats = _nats(generator, windows, own, texts, seed)
    retrieval = None
    if own:
        retrieval = retrieve(
            _pooled(generator, texts),
            _pooled(generator, own),
            group_size=config.group_size,
            seed=seed,
        )
    return Findings(
        pieces=pieces,
        notes=chosen.notes + _unjudged(generator) + ([] if own else [_NO_TRUE_SUMMARIES]),
        rows=[reference_row(pieces), *rows],
        likeness=likeness,
        sections=sections,
        nats=nats,
        differences=likelihood_differences(nats, seed=seed),
        retrieval=retrieval,
    )


def ways_of(generator: BridgeGenerator) -> tuple[Way, ...]:
    """Ways that a bridge can go: without heads nothing is known but summaries."""
    return WAYS if generator.bridge.heads is not None else WAYS[:1]


def has_true_summaries(generator: BridgeGenerator) -> bool:
    """Whether a piece has summaries of its own where the bridge's answers enter.

    At the input all summaries begin as one vector, whatever the piece.
    """
    return generator.bridge.layer > 0


def _write_rows(
    pieces: Sequence[JudgedPiece],
    generator: BridgeGenerator,
    config: ControlJudgeConfig,
    seed: int,
    on_progress: OnProgress,
    true_summaries: Callable[[JudgedPiece], Tensor] | None = None,
) -> tuple[list[Row], dict[str, list[Generated]]]:
    """All rows, those of true summaries where there are some, and by name what was written."""
    rows, written = [], {}
    for source, way in rows_of(ways_of(generator)):
        if source == "true" and true_summaries is None:
            continue
        row, made = judge_row(
            pieces,
            source,
            way,
            generator,
            max_bars=config.bars,
            seed=seed,
            true_summaries=true_summaries,
            on_piece=_part(on_progress, f"{source}, {way}", len(pieces)),
        )
        rows.append(row)
        written[row.name] = made
    return rows, written


def _likeness(
    pieces: Sequence[JudgedPiece],
    written: Mapping[str, Sequence[Generated]],
    generator: BridgeGenerator,
    config: ControlJudgeConfig,
    seed: int,
    on_progress: OnProgress,
) -> Likeness:
    return judge_likeness(
        pieces,
        written,
        ways_of(generator),
        generator,
        variety_n=config.variety_n,
        max_bars=config.bars,
        seed=seed,
        on_progress=on_progress,
    )


def _unjudged(generator: BridgeGenerator) -> list[str]:
    left_out = [way for way in WAYS if way not in ways_of(generator)]
    if not left_out:
        return []
    return [f"rows {' and '.join(left_out)} not run: the bridge has no attribute heads"]


def _by_protocol(
    generator: BridgeGenerator,
    folder: ShardFolder,
    config: ControlJudgeConfig,
    path: Path,
    seed: int,
    on_progress: OnProgress,
) -> Findings:
    chosen: Chosen = protocol_pieces(
        path, folder, num_pieces=config.n, num_bars=config.bars, seed=seed
    )
    # Of true summaries no row: many of the pieces are not there.
    rows, written = _write_rows(chosen.pieces, generator, config, seed, on_progress)
    likeness = _likeness(chosen.pieces, written, generator, config, seed, on_progress)
    return Findings(
        pieces=chosen.pieces,
        notes=chosen.notes + _unjudged(generator),
        rows=rows,
        likeness=likeness,
        protocol={row.name: protocol_numbers(row, written[row.name], seed=seed) for row in rows},
    )


def from_texts(
    generator: BridgeGenerator, pieces: Sequence[JudgedPiece], max_bars: int, seed: int
) -> list[Tensor]:
    """(bars, D) that the bridge makes of each piece's text, in the base's own scale."""
    return [
        generator.summaries([(piece.text, min(piece.num_bars, max_bars))], seed=seed + number)
        for number, piece in enumerate(pieces)
    ]


def _nats(
    generator: BridgeGenerator,
    windows: Sequence[np.ndarray],
    own: Sequence[Tensor],
    texts: Sequence[Tensor],
    seed: int,
) -> dict[str, np.ndarray]:
    others = derangement(len(windows), seed)
    kinds: dict[str, Sequence[Tensor] | None] = {"none": None}
    if own:
        kinds |= {"own": own, "another": [own[other] for other in others]}
    kinds |= {"text": texts, "another_text": [texts[other] for other in others]}
    return {
        kind: nats_per_note(generator.model, windows, summaries, generator.inject)
        for kind, summaries in kinds.items()
    }


def _pooled(generator: BridgeGenerator, summaries: Sequence[Tensor]) -> Tensor:
    """(P, D) mean over bars, normalised by the bridge's statistics."""
    mean_D, std_D = (x.cpu() for x in (generator.bridge.mean_D, generator.bridge.std_D))
    return torch.stack([((of_piece - mean_D) / std_D).mean(dim=0) for of_piece in summaries])


def _part(on_progress: OnProgress, part: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(part, done, total)


def nats_intervals(findings: Findings, seed: int) -> dict[str, Interval]:
    """Nats per note of each kind, with intervals."""
    return {
        kind: interval(values, seed=seed, is_share=False) for kind, values in findings.nats.items()
    }


def piece_lines(findings: Findings) -> list[dict[str, Any]]:
    """One object per piece: its text, what it asks for, and what was found in every row."""
    curves_of = {name: pairs.curves() for name, pairs in findings.likeness.pairs.items()}
    return [
        {
            "name": list(piece.name),
            "text": piece.text,
            "template": piece.template,
            "wanted": _plain_wish(asdict(piece.wanted)),
            "scores": {
                row.name: {metric: scores[number] for metric, scores in row.scores.items()}
                for row in findings.rows
            },
            "bar_similarity": {name: curves[number] for name, curves in curves_of.items()},
            "variety": {name: values[number] for name, values in findings.likeness.variety.items()},
            "nats_per_note": {kind: values[number] for kind, values in findings.nats.items()},
        }
        for number, piece in enumerate(findings.pieces)
    ]


def _plain_wish(wish: dict[str, Any]) -> dict[str, Any]:
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in wish.items()
    }
