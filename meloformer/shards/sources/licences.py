"""Licences that lie beside the music, guessed from well-known words."""

import json
import re

READ_BYTES = 64 * 1024
_MAX_NAMES = 100

_BY = r"by(?:[- ](?:nc|sa|nd))*"
_CARD_LICENCE = re.compile(r"\A---\r?\n(?:.*\r?\n)*?license:\s*[\"']?([\w.+-]+)")
# What stands first in the text names the licence, for licences name others; {1}, {2} are groups.
_WORDS = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\bcc0\b|cc-zero|publicdomain/zero", "CC0"),
        (rf"creativecommons\.org/licenses/({_BY})/(\d\.\d)", "CC-{1} {2}"),
        (rf"\bcc[- ]({_BY})(?:[- ]v?(\d\.\d))?\b", "CC-{1} {2}"),
        (r"\battribution-noncommercial-sharealike (\d\.\d)", "CC-BY-NC-SA {1}"),
        (r"\battribution-noncommercial-noderivatives (\d\.\d)", "CC-BY-NC-ND {1}"),
        (r"\battribution-noncommercial (\d\.\d)", "CC-BY-NC {1}"),
        (r"\battribution-sharealike (\d\.\d)", "CC-BY-SA {1}"),
        (r"\battribution-noderivatives (\d\.\d)", "CC-BY-ND {1}"),
        (r"\battribution (\d\.\d) (?:international|unported|generic)", "CC-BY {1}"),
        (r"gnu affero general public license(?:\W+version (\d))?", "AGPL {1}"),
        (r"gnu lesser general public license(?:\W+version (\d))?", "LGPL {1}"),
        (r"gnu (?:general public|gpl) license(?:\W+version (\d))?", "GPL {1}"),
        (r"\b([al]?gpl)[- ]?v?(\d(?:\.\d)?)?\b", "{1} {2}"),
        (r"apache license|\bapache-2\.0\b", "Apache 2.0"),
        (r"mozilla public license|\bmpl-2\.0\b", "MPL 2.0"),
        (r"permission is hereby granted, free of charge|\bmit\b(?: license|\Z)", "MIT"),
        (r"redistribution and use in source and binary forms|\bbsd\b", "BSD"),
        (r"\bunlicense\b|publicdomain/mark", "public domain"),
    )
]
# What many licences say besides.
_VAGUE_WORDS = [
    (re.compile("public domain"), "public domain"),
    (re.compile("all rights reserved"), "all rights reserved"),
]
UNKNOWN = "unknown"


def guess_licence(text: str) -> str:
    """Name a licence by well-known words of its text.

    >>> guess_licence("Attribution 4.0 International"), guess_licence("cc-by-sa-4.0")
    ('CC-BY 4.0', 'CC-BY-SA 4.0')
    """
    plain = " ".join(text.lower().split())
    for words in (_WORDS, _VAGUE_WORDS):
        found = [(match, name) for pattern, name in words if (match := pattern.search(plain))]
        if found:
            match, name = min(found, key=lambda pair: pair[0].start())
            return _filled(name, match)
    return UNKNOWN


def _filled(name: str, match: re.Match[str]) -> str:
    for number, group in enumerate(match.groups(), start=1):
        name = name.replace(f"{{{number}}}", (group or "").upper().replace(" ", "-"))
    return name.strip()


class Licences:
    """What licence files were met; bounded, however many there are."""

    def __init__(self) -> None:
        self._guesses: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        """Take the first READ_BYTES of a licence file, or of a Hugging Face dataset's card.

        Args:
            name: path inside the source.
            data: of the file; a card that names no licence is passed over.
        """
        text = data[:READ_BYTES].decode("utf-8", "replace")
        last = name.rpartition("/")[2].lower()
        if last == "dataset_info.json":
            text = _field_of_info(data)
        elif last == "readme.md":
            match = _CARD_LICENCE.match(text)
            text = match[1] if match else ""
        if not text.strip():
            return
        guess = guess_licence(text)
        if len(self._guesses) >= _MAX_NAMES and name not in self._guesses:
            name = "and more"  # their guesses are kept apart, their names are not
            guess = ", ".join(sorted({*self._guesses.get(name, guess).split(", "), guess}))
        self._guesses[name] = guess

    def lines(self) -> tuple[str, ...]:
        """`name: guess` of each, sorted."""
        return tuple(f"{name}: {guess}" for name, guess in sorted(self._guesses.items()))


def _field_of_info(data: bytes) -> str:
    try:
        info = json.loads(data)
    except ValueError:  # longer than what is read, or damaged: then it names no licence
        return ""
    licence = info.get("license") if isinstance(info, dict) else None
    return licence if isinstance(licence, str) else ""
