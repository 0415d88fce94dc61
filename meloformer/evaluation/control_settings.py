"""What is judged, and which of the rows that are asked for a bridge can write."""

from dataclasses import dataclass
from pathlib import Path

from meloformer.errors import ConfigError
from meloformer.evaluation.control_generator import BridgeGenerator
from meloformer.evaluation.control_pieces import Language
from meloformer.evaluation.control_rows import (
    WAYS,
    WRITTEN_SOURCES,
    Way,
    WrittenSource,
    rows_of,
)

_AT_THE_INPUT = (
    "the bridge's answers enter at the input, where pieces have no summaries of their own"
)
NO_TRUE_SUMMARIES = (
    f"rows of true summaries, their likelihood and retrieval not run: {_AT_THE_INPUT}"
)
_ELSEWHERE = "a user's captions need not name pieces of the shards"
NOT_THERE = f"rows of true summaries not run: {_ELSEWHERE}"
_NO_HEADS = "the bridge has no attribute heads"


@dataclass(frozen=True, kw_only=True)
class ControlJudgeConfig:
    """What is judged, and how much of it.

    Args:
        captions: captions.jsonl of launch/caption.py; or any JSON lines with location and caption,
            for text2midi's protocol.
        n: unseen pieces, if there are so many; pieces that a model writes.
        language: of the texts.
        rows: who says what is written: the piece's own text, another's (shuffled), its own
            summaries (true), nobody (none). The real pieces stand beside them, and likelihood and
            retrieval, for which nothing is written, whatever is left out.
        ways: what the model is told: the summaries alone, the attributes in the prefix too, or
            these kept strictly by the grammar. Nobody has attributes to say: none goes by
            summaries, whatever the ways.
        bars: bars that are written of each piece, at most, and heard of the real ones.
        sections: judge pieces of two texts too, each part against its own.
        group_size: pieces among which a text looks for its own.
        variety_n: pieces whose text is written once more, to see how different two pieces of one
            text are; 0: none.
    """

    captions: Path | None = None
    n: int = 300
    language: Language = "en"
    rows: tuple[WrittenSource, ...] = WRITTEN_SOURCES
    ways: tuple[Way, ...] = WAYS
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
        for flag, chosen, all_of in (
            ("rows", self.rows, WRITTEN_SOURCES),
            ("ways", self.ways, WAYS),
        ):
            if not chosen:
                raise ConfigError(f"--{flag}: found none; allowed: {', '.join(all_of)}")


def ways_of(generator: BridgeGenerator) -> tuple[Way, ...]:
    """Ways that a bridge can go: without heads nothing is known but summaries."""
    return WAYS if generator.bridge.heads is not None else WAYS[:1]


def has_true_summaries(generator: BridgeGenerator) -> bool:
    """Whether a piece has summaries of its own where the bridge's answers enter.

    At the input all summaries begin as one vector, whatever the piece.
    """
    return generator.bridge.layer > 0


def rows_to_write(
    config: ControlJudgeConfig, generator: BridgeGenerator, *, are_there: bool = True
) -> tuple[list[tuple[WrittenSource, Way]], list[str]]:
    """Rows that are asked for and can be written.

    Args:
        config: asks for rows and ways.
        generator: may know nothing but summaries, or no true ones.
        are_there: whether all pieces can be read, without which they have no summaries.

    Returns:
        Them, and lines that say which ways cannot be gone.

    Raises:
        ConfigError: not one is left.
    """
    ways, asked = ways_of(generator), rows_of(config.rows, config.ways)
    has_true = are_there and has_true_summaries(generator)
    without = [way for way in WAYS if way not in ways and any(way == of for _, of in asked)]
    rows = [(s, way) for s, way in asked if way in ways and (s != "true" or has_true)]
    if not rows:
        whys = [_NO_HEADS] if without else []
        if "true" in config.rows and not has_true:
            whys.append(_AT_THE_INPUT if are_there else _ELSEWHERE)
        raise ConfigError(
            f"--rows {' '.join(config.rows)} --ways {' '.join(config.ways)}: found none that can "
            f"be written: {' and '.join(whys)}; allowed: with summaries among the ways, rows text, "
            "shuffled and none"
        )
    return rows, [f"rows {' and '.join(without)} not run: {_NO_HEADS}"] if without else []
