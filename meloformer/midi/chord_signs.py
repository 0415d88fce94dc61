"""Chords of midi/harmony.py as a lead sheet writes them."""

from meloformer.midi.harmony import CHORD_INTERVALS, NO_CHORD

_ROOTS = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
# In the order of CHORD_INTERVALS.
_QUALITIES = ("", "m", "°", "+", "maj7", "m7", "7")


def chord_sign(chord: int) -> str:
    """Sign of a chord, nothing where there is none.

    Args:
        chord: root * 7 + quality, or 84.

    >>> [chord_sign(chord) for chord in (0, 64, 27, 84)]
    ['C', 'Am', 'E♭7', '']
    """
    if chord == NO_CHORD:
        return ""
    root, quality = divmod(chord, len(CHORD_INTERVALS))
    return _ROOTS[root] + _QUALITIES[quality]
