"""What steers a piece: sections of text, or pieces that lend their summaries, bar by bar.

A piece of several sections is a weighted mean over bars: every text gives summaries of the whole
piece, and where two sections meet one fades into the other. So does a mixture of pieces.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.errors import GenerationError
from meloformer.tokens.attributes import Attributes

CROSSFADE_BARS = 4
# Keyboards and writers have more than one dash and colon.
_SECTION = re.compile(r"\s*(\d{1,6})\s*[-–—－]\s*(\d{1,6})\s*[:：](.*)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A text and the bars that it holds for.

    Args:
        first: first bar, from 0.
        last: one past the last bar.
        text: what the music is to be like.
    """

    first: int
    last: int
    text: str


def parse_texts(texts: Sequence[str], num_bars: int | None) -> list[list[Section]]:
    """What `--text` says: one piece per text, or one piece of several sections.

    Args:
        texts: plain ones, or all of them as `0-15: calm piano`, counting bars from 0.
        num_bars: of a piece of plain text; of sections, None takes what they say.

    Returns:
        The sections of each piece.

    Raises:
        GenerationError: sections beside plain texts, sections with a gap or without a text, or
            another number of bars than was asked for.

    >>> parse_texts(["0-3: calm", "4-7: loud"], None)
    [[Section(first=0, last=4, text='calm'), Section(first=4, last=8, text='loud')]]
    """
    found = [_SECTION.fullmatch(text) for text in texts]
    if not any(found):
        return [[Section(0, num_bars or 0, text)] for text in texts]
    if not all(found):
        plain = next(text for text, match in zip(texts, found, strict=True) if not match)
        raise GenerationError(
            f"--text {plain!r} beside sections: allowed: every text with its bars, such as "
            "'0-15: calm piano', or none of them"
        )
    sections = [Section(int(m[1]), int(m[2]) + 1, m[3].strip()) for m in found if m]
    sections.sort(key=lambda section: section.first)
    expected = 0
    for section in sections:
        if section.first != expected or section.last <= section.first:
            raise GenerationError(
                f"--text '{section.first}-{section.last - 1}: ...': allowed: sections that follow "
                f"each other from bar 0 on; this one begins with bar {expected} and ends no earlier"
            )
        if not section.text:
            raise GenerationError(
                f"--text '{section.first}-{section.last - 1}:': found an empty text; allowed: a "
                "few words or more"
            )
        expected = section.last
    if num_bars is not None and num_bars != expected:
        raise GenerationError(
            f"--bars {num_bars} with sections of {expected} bars: allowed: as many as the sections "
            "have; leave --bars out"
        )
    return [sections]


def section_weights(sections: Sequence[Section], crossfade: int) -> Tensor:
    """(sections, bars) weight of each section in each bar; those of a bar sum to one.

    Args:
        sections: one after the other, from bar 0.
        crossfade: bars over which one fades into the next, half of them on each side.

    >>> section_weights([Section(0, 2, "a"), Section(2, 4, "b")], 2)
    tensor([[1.0000, 0.7500, 0.2500, 0.0000],
            [0.0000, 0.2500, 0.7500, 1.0000]])
    """
    bar_S = torch.arange(sections[-1].last) + 0.5
    # How far each border has been crossed.
    crossed = [
        ((bar_S - section.first) / max(crossfade, 1e-9) + 0.5).clamp(0, 1)
        for section in sections[1:]
    ]
    begun = torch.stack([torch.ones_like(bar_S), *crossed])
    # A section shorter than the fade is left before it is wholly reached.
    begun = begun.cummin(0).values
    return begun - torch.cat([begun[1:], torch.zeros_like(bar_S)[None]])


def parse_course(text: str, num_bars: int) -> Tensor:
    """(bars,) share of the second piece of a mixture, from `--at`.

    Args:
        text: `bar:share` pairs such as `0:0,64:1`; between them it goes in a line, beyond them it
            stays.
        num_bars: of the piece.

    Raises:
        GenerationError: not such pairs.

    >>> parse_course("0:0,4:1", 6)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000, 1.0000])
    """
    points: list[tuple[int, float]] = []
    for pair in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*:\s*([0-9.]+)\s*", pair)
        share = float(match[2]) if match and match[2].count(".") < 2 and match[2] != "." else -1.0
        if match is None or not 0 <= share <= 1:
            raise GenerationError(
                f"--at {text}: found {pair.strip()!r}; allowed: bar:share pairs with shares from 0 "
                "(the first piece) to 1 (the second), such as 0:0,64:1"
            )
        points.append((int(match[1]), share))
    points.sort()
    bars = [bar for bar, _ in points]
    if len(set(bars)) < len(bars):
        raise GenerationError(f"--at {text}: found a bar twice; allowed: one share a bar")
    course_S = torch.empty(num_bars)
    for bar in range(num_bars):
        after = next((i for i, place in enumerate(bars) if place >= bar), len(bars))
        if after in (0, len(bars)):
            course_S[bar] = points[min(after, len(bars) - 1)][1]
            continue
        (start, low), (end, high) = points[after - 1], points[after]
        course_S[bar] = low + (high - low) * (bar - start) / (end - start)
    return course_S


def mixed(first_SD: Tensor, second_SD: Tensor, course_S: Tensor) -> Tensor:
    """(S, D) from one piece's summaries to another's; as many bars as the course has.

    Raises:
        GenerationError: a piece that is over before the course.
    """
    num_bars = len(course_S)
    shortest = min(len(first_SD), len(second_SD))
    if shortest < num_bars:
        raise GenerationError(
            f"--bars {num_bars} of a mixture: the shorter piece has {shortest}; allowed: up to that"
        )
    share_S1 = course_S.to(first_SD)[:, None]
    return (1 - share_S1) * first_SD[:num_bars] + share_S1 * second_SD[:num_bars]


def agreed(said: Sequence[Attributes]) -> Attributes:
    """What several texts say alike; the rest is left to the summaries of each.

    >>> agreed([Attributes(tempo=3, key=1), Attributes(tempo=3, key=2)])
    Attributes(metre=None, tempo=3, key=None, length=None, density=None, instruments=())
    """
    first = vars(said[0])
    same = {
        name: value
        for name, value in first.items()
        if all(vars(other)[name] == value for other in said)
    }
    return Attributes(**same)
