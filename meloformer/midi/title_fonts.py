"""Fonts for words of users: names of files and texts may have letters that the usual font lacks."""

import re
from functools import cache

# Families with Chinese letters, as systems bring them; the first that is installed is taken.
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the name that one file of all its regions goes by
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
    "Arial Unicode MS",
)
_USUAL = "DejaVu Sans"  # comes with matplotlib


def drawable(words: str, chinese: tuple[str, ...] = _CHINESE) -> tuple[str, list[str]]:
    """What of some words can be drawn, and with which fonts.

    Args:
        words: a line.
        chinese: families to look for where the usual font lacks a letter.

    Returns:
        The line, in which letters that no font has have become an ellipsis, and font families.

    >>> drawable("calm piano")
    ('calm piano', ['DejaVu Sans'])
    """
    fonts = [_USUAL]
    lacking = set(words) - _letters(_USUAL)
    if lacking and (other := _installed(chinese)):
        fonts.append(other)
        lacking -= _letters(other)
    if lacking:
        words = re.sub(f"[{re.escape(''.join(sorted(lacking)))}]+", "…", words)
    return words, fonts


def _installed(families: tuple[str, ...]) -> str | None:
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return next((family for family in families if family in names), None)


@cache
def _letters(family: str) -> frozenset[str]:
    """Those that a font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=family)))
    return frozenset(map(chr, font.get_charmap()))
