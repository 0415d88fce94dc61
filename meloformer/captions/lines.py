"""JSON lines of a user's: each line an object, each fault named with its line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meloformer.errors import ConfigError


def read_objects(path: Path, flag: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty.

    Args:
        path: a .jsonl file.
        flag: that names it, for messages.

    Raises:
        ConfigError: it cannot be read, or a line is no JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise ConfigError(
                        f"{flag} {path}, line {number}: found no JSON ({error}); allowed: one "
                        "JSON object a line"
                    ) from error
                if not isinstance(found, dict):
                    raise ConfigError(
                        f"{flag} {path}, line {number}: found {type(found).__name__}; allowed: one "
                        "JSON object a line"
                    )
                yield number, found
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path}: found bytes that are no UTF-8 ({error})") from error
    except OSError as error:
        raise ConfigError(
            f"{flag} {path} cannot be read ({error.strerror}); allowed: a .jsonl file"
        ) from error


def text_of(entry: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first of some fields that an object has.

    Raises:
        ConfigError: it has none of them, or the field is no text.
    """
    for name in names:
        value = entry.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    found = ", ".join(sorted(entry)) or "no field"
    raise ConfigError(
        f"{where}: found {found}; needed: `{names[0]}`, a text"
        + (f" (or {', '.join(f'`{name}`' for name in names[1:])})" if names[1:] else "")
    )
