"""A user's own captions: JSON lines with `location` and `caption`, as MidiCaps has them."""

from collections.abc import Iterator
from pathlib import Path

from meloformer.captions.label_words import is_chinese
from meloformer.captions.lines import read_objects, text_of
from meloformer.captions.locations import ByLocation
from meloformer.errors import ConfigError

_FLAG = "--user_captions"


def load_user_captions(path: Path) -> ByLocation[tuple[str, str]]:
    """(language, text) of each file; a text with a Chinese character is Chinese.

    Raises:
        ConfigError: no such file, a line without `location` or without `caption`, or no line.
    """
    captions = ByLocation(_entries(path))
    if not captions.num_entries:
        raise ConfigError(f"{_FLAG} {path}: found no caption; allowed: one JSON object a line")
    return captions


def _entries(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    for number, entry in read_objects(path, _FLAG):
        where = f"{_FLAG} {path}, line {number}"
        location = text_of(entry, ("location",), where)
        given = entry.get("caption")
        texts = given if isinstance(given, list) and given else [given]
        for text in texts:
            caption = " ".join(text_of({**entry, "caption": text}, ("caption",), where).split())
            yield location, ("zh" if is_chinese(caption) else "en", caption)
