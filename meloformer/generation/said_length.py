"""How many bars a text asks for."""

import re

from meloformer.tokens.vocabulary import LENGTH_BIN_BARS, length_bin

_COUNTED = re.compile(r"(\d{1,6})\s*-?\s*(?:bars?\b|measures?\b|个?小节)", re.IGNORECASE)
_SPEAKS_OF_BARS = re.compile(r"\bbars?\b|\bmeasures?\b|小节", re.IGNORECASE)
# Of a piece that is merely called short: a phrase and its answer.
_SHORT_BARS = 8


def said_bars(text: str, length: int | None) -> int | None:
    """Bars of a piece whose text says how long it is to be; None where it does not.

    Attribute heads hear a bin of lengths. A number of bars in the text counts where it lies in that
    bin or beside it: heads miss by one now and then, and a text may count other bars than those of
    the whole piece. Without such a number it is as many as the bin ends with, a number of bars that
    pieces often have; of a text that counts no bars at all, a phrase and its answer at least.

    Args:
        text: what the music is to be like.
        length: bin that its heads have heard; None where they have heard nothing.

    >>> said_bars("a waltz of 30 bars", 8), said_bars("a waltz, drums after 2 bars", 8)
    (30, 32)
    >>> said_bars("two bars", 1), said_bars("a short piece", 1)
    (2, 8)
    """
    if length is None:
        return None
    written = [int(number) for number in _COUNTED.findall(text)]
    off = {bars: abs(int(length_bin(bars)) - length) for bars in written if bars}
    if off and min(off.values()) <= 1:
        return min(off, key=lambda bars: off[bars])
    bars = LENGTH_BIN_BARS[min(length, len(LENGTH_BIN_BARS) - 1)]
    return bars if _SPEAKS_OF_BARS.search(text) else max(bars, _SHORT_BARS)
