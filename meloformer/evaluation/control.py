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
from meloformer.evaluation.control_pieces import Chosen, choose_pieces
from meloformer.evaluation.control_protocol import protocol_numbers, protocol_pieces
from meloformer.evaluation.control_rows import (
    Generated,
    JudgedPiece,
    Row,
    Way,
    WrittenSource,
    judge_row,
    judge_sections,
    reference_row,
)
from meloformer.evaluation.control_settings import (
    NO_TRUE_SUMMARIES,
    NOT_THERE,
    ControlJudgeConfig,
    has_true_summaries,
    rows_to_write,
)
from meloformer.shards.reader import ShardFolder


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
        ConfigError: captions that cannot be judged by, or rows none of which can be written.
    """
    if config.captions is None:
        raise ConfigError("--captions: found none; allowed: captions.jsonl of launch/caption.py")
    if not facts_path(config.captions).is_file():
        return _by_protocol(generator, folder, config, config.captions, seed, on_progress)
    named, unwritten = rows_to_write(config, generator)
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
    rows, written = _write_rows(pieces, named, generator, config, seed, on_progress, true)
    likeness = _likeness(pieces, written, generator, config, seed, on_progress)
    sections = _sections(pieces, generator, config, seed, on_progress)
    on_progress("likelihood", 0, len(pieces))
    nats = _nats(generator, pieces, windows, own, config.bars, seed)
    return Findings(
        pieces=pieces,
        notes=chosen.notes + unwritten + ([] if own else [NO_TRUE_SUMMARIES]),
        rows=[reference_row(pieces, max_bars=config.bars), *rows],
        likeness=likeness,
        sections=sections,
        nats=nats,
        differences=likelihood_differences(nats, seed=seed),
        retrieval=find_pieces(generator, pieces, own, config, seed) if own else None,
    )


def _write_rows(
    pieces: Sequence[JudgedPiece],
    named: Sequence[tuple[WrittenSource, Way]],
    generator: BridgeGenerator,
    config: ControlJudgeConfig,
    seed: int,
    on_progress: OnProgress,
    true_summaries: Callable[[JudgedPiece], Tensor] | None = None,
) -> tuple[list[Row], dict[str, list[Generated]]]:
    """The rows that are named, and by name what was written."""
    rows, written = [], {}
    for source, way in named:
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
        generator,
        variety_n=config.variety_n,
        max_bars=config.bars,
        seed=seed,
        on_progress=on_progress,
    )


def _sections(
    pieces: Sequence[JudgedPiece],
    generator: BridgeGenerator,
    config: ControlJudgeConfig,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Row]:
    if not config.sections:
        return {}
    on_progress("sections", 0, len(pieces))
    half = max(config.bars // 2, 1)
    return judge_sections(pieces, generator, section_bars=half, seed=seed)


def _by_protocol(
    generator: BridgeGenerator,
    folder: ShardFolder,
    config: ControlJudgeConfig,
    path: Path,
    seed: int,
    on_progress: OnProgress,
) -> Findings:
    # Of true summaries no row: many of the pieces are not there.
    named, unwritten = rows_to_write(config, generator, are_there=False)
    chosen: Chosen = protocol_pieces(
        path, folder, num_pieces=config.n, num_bars=config.bars, seed=seed
    )
    rows, written = _write_rows(chosen.pieces, named, generator, config, seed, on_progress)
    likeness = _likeness(chosen.pieces, written, generator, config, seed, on_progress)
    return Findings(
        pieces=chosen.pieces,
        notes=chosen.notes + unwritten + ([NOT_THERE] if "true" in config.rows else []),
        rows=rows,
        likeness=likeness,
        sections=_sections(chosen.pieces, generator, config, seed, on_progress),
        protocol={row.name: protocol_numbers(row, written[row.name], seed=seed) for row in rows},
    )


def from_texts(
    generator: BridgeGenerator, texts: Sequence[str], num_bars: Sequence[int], seed: int
) -> list[Tensor]:
    """(bars, D) that the bridge makes of texts, in the base's own scale, as rows have them."""
    return [
        generator.summaries([section], seed=seed + number)
        for number, section in enumerate(zip(texts, num_bars, strict=True))
    ]


def _nats(
    generator: BridgeGenerator,
    pieces: Sequence[JudgedPiece],
    windows: Sequence[np.ndarray],
    own: Sequence[Tensor],
    max_bars: int,
    seed: int,
) -> dict[str, np.ndarray]:
    others = derangement(len(pieces), seed)
    num_bars = [min(piece.num_bars, max_bars) for piece in pieces]
    texts = [piece.text for piece in pieces]
    kinds: dict[str, Sequence[Tensor] | None] = {"none": None}
    if own:
        kinds |= {"own": own, "another": [own[other] for other in others]}
    # Another's text for as many bars as the piece has, as the row `shuffled` writes it: laid over
    # again from its start, it would hurt by its seams too.
    kinds |= {
        "text": from_texts(generator, texts, num_bars, seed),
        "another_text": from_texts(generator, [texts[other] for other in others], num_bars, seed),
    }
    return {
        kind: nats_per_note(generator.model, windows, summaries, generator.inject)
        for kind, summaries in kinds.items()
    }


def find_pieces(
    generator: BridgeGenerator,
    pieces: Sequence[JudgedPiece],
    own: Sequence[Tensor],
    config: ControlJudgeConfig,
    seed: int,
) -> Retrieval:
    """Look for each piece by what the bridge makes of its text.

    Every text for as many bars: it is to find its piece by what it says, not by how long that piece
    is, which only the judge knows.

    Args:
        generator: whose bridge is asked.
        pieces: that are looked for.
        own: (bars, D) true summaries of each.
        config: bars, and pieces of a group.
        seed: of noise, groups and intervals.
    """
    texts = [piece.text for piece in pieces]
    found_by = from_texts(generator, texts, [config.bars] * len(texts), seed)
    return retrieve(
        _pooled(generator, found_by),
        _pooled(generator, own),
        group_size=config.group_size,
        seed=seed,
    )


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
