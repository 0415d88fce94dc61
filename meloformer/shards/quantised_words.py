"""What each count of the quantiser says, in words for tables and pages."""

_WORDS = {
    "notes": "notes in the files",
    "merged": "notes merged with another of the same instrument, onset and pitch",
    "durations_cut": "notes cut at the next one of their pitch",
    "durations_capped": "notes cut to the longest duration there is",
    "zero_length": "notes without a duration",
    "pedal_lengthened": "notes lengthened by the pedal",
    "bends": "pitch bends dropped",
    "controllers": "controllers dropped, the pedal apart",
    "tempos_averaged": "tempo changes inside a bar, averaged",
    "tempos_clamped": "bars with a tempo beyond the table",
    "bars_cut": "bars cut short by a metre in mid-bar",
    "bar_lines_moved": "of these, bars of a length without a metre",
    "bars_split": "bars longer than any metre, split",
    "false_metre_bars": "bars of 1/4 joined to bars of 4/4",
}
_RECOVERED = "recovered_"


def quantised_words(name: str) -> str:
    """A count in words; a name that has none stands for itself.

    >>> quantised_words("bends"), quantised_words("recovered_gzip")
    ('pitch bends dropped', 'files mended: gzip')
    """
    if name.startswith(_RECOVERED):
        return f"files mended: {name.removeprefix(_RECOVERED).replace('_', ' ')}"
    return _WORDS.get(name, name.replace("_", " "))
