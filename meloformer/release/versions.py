"""One version in three files: VERSION, and the newest headings of CHANGELOG and RELEASE_NOTES.

Such a heading is `## 1.2.3 (2027-01-31)`, or `## 1.2.3 (unreleased)` before its day has come.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from meloformer.errors import ConfigError

VERSION_NAME, CHANGELOG_NAME, NOTES_NAME = "VERSION", "CHANGELOG.md", "RELEASE_NOTES.md"
_HEADING = re.compile(r"^#+ (?:MeloFormer )?(\d+\.\d+\.\d+) \((unreleased|\d{4}-\d{2}-\d{2})\)$")


@dataclass(frozen=True)
class Version:
    """What is to be released.

    Args:
        number: such as 1.2.3.
        day: as the headings say it, or `unreleased`.
    """

    number: str
    day: str


def agreed_version(root: Path) -> Version:
    """The version that all three files name.

    Args:
        root: of the source tree.

    Raises:
        ConfigError: a file is missing, names none, or names another.
    """
    number = _text(root / VERSION_NAME).strip()
    found = {name: _newest_heading(root / name) for name in (CHANGELOG_NAME, NOTES_NAME)}
    newest = found[CHANGELOG_NAME]
    if any(version != Version(number, newest.day) for version in found.values()):
        said = ", ".join(f"{name} {one.number} ({one.day})" for name, one in found.items())
        raise ConfigError(
            f"versions differ: found {VERSION_NAME} {number}, {said}; allowed: one number and one "
            "day; change the two that are behind"
        )
    return newest


def _newest_heading(path: Path) -> Version:
    for line in _text(path).splitlines():
        if heading := _HEADING.match(line):
            return Version(*heading.groups())
    raise ConfigError(
        f"{path}: found no heading with a version; allowed: `## 1.2.3 (2027-01-31)`, or "
        "`(unreleased)` in place of the day"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); allowed: a checkout of MeloFormer; run this from "
            "its root"
        ) from error
