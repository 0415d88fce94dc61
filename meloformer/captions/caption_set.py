"""The files of a caption set: `captions.jsonl`, an object a window, and its facts beside it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meloformer.captions.lines import read_objects
from meloformer.errors import ConfigError

FORMAT_NAME = "meloformer-captions"
FORMAT_VERSION = 1

# In the place of a template's name: what a user wrote.
USER_TEMPLATE = "user"

_REMEDY = "make it with `python launch/caption.py --data SHARDS --output captions.jsonl`"


@dataclass(frozen=True, kw_only=True)
class WindowCaptions:
    """One window: what is said of it, and what was measured.

    Args:
        location: path of its file, as the shards know it.
        key: of its piece.
        split: of its piece.
        first_bar: its first bar.
        last_bar: one past its last bar.
        captions: texts by language.
        templates: for each text the patterns it is made of, see `compose.Caption`; or `user`.
        mentions: for each text what it says, see `compose.Caption`; None of a user's.
        attributes: see `measure.WindowAttributes`.
    """

    location: str
    key: str
    split: str
    first_bar: int
    last_bar: int
    captions: dict[str, list[str]]
    templates: dict[str, list[str]]
    mentions: dict[str, list[list[Any] | None]]
    attributes: dict[str, Any]

    @property
    def name(self) -> tuple[str, str, int, int]:
        """(split, key, first bar, last bar), the name of a window in every set."""
        return self.split, self.key, self.first_bar, self.last_bar

    def to_line(self) -> str:
        """One line of JSON, with its end."""
        return json.dumps(vars(self), ensure_ascii=False, separators=(",", ":")) + "\n"


def facts_path(path: Path) -> Path:
    """Where the facts of a caption set stand.

    >>> facts_path(Path("sets/captions.jsonl")).as_posix()
    'sets/captions.json'
    """
    return path.with_suffix(".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a caption set: settings, sums, counts, the templates held out for the judge.

    Args:
        path: of captions.jsonl.

    Raises:
        ConfigError: no such set, an unfinished one, or one of another format version.
    """
    if not path.is_file():
        raise ConfigError(f"captions {path}: found no such file; {_REMEDY}")
    try:
        facts = json.loads(facts_path(path).read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"captions {path}: found no {facts_path(path).name} beside it; copy both, or {_REMEDY}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{facts_path(path)} cannot be read ({error}); {_REMEDY}") from error
    ours = (FORMAT_NAME, FORMAT_VERSION)
    found = (facts.get("name"), facts.get("format")) if isinstance(facts, dict) else type(facts)
    if found != ours:
        raise ConfigError(f"{facts_path(path)}: found {found}, expected {ours}; {_REMEDY}")
    return facts


def read_captions(path: Path) -> Iterator[WindowCaptions]:
    """All windows of a caption set, one after the other, in the order of the shards.

    Raises:
        ConfigError: no such set, or a line that is none of it.
    """
    read_facts(path)
    names = {item.name for item in fields(WindowCaptions)}
    for number, entry in read_objects(path, "captions"):
        if set(entry) != names:
            missing = ", ".join(sorted(names - set(entry))) or "none"
            raise ConfigError(
                f"captions {path}, line {number}: found fields {', '.join(sorted(entry))}; "
                f"missing: {missing}; {_REMEDY}"
            )
        yield WindowCaptions(**entry)
