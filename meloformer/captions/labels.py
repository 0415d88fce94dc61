"""Genre, mood and scene of a piece, where its folder, its name or a file of labels tells them."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from meloformer.captions.label_words import labels_in
from meloformer.captions.lines import read_objects, text_of
from meloformer.captions.locations import ByLocation
from meloformer.errors import ConfigError

FROM_FOLDER, FROM_NAME = "folder", "name"

_FLAG = "--labels"
_LOCATION_FIELDS = ("location", "file", "path", "filename", "midi")
# Fields that are what they say, and fields whose words are looked for in the tables.
_NAMED_FIELDS = ("genre", "mood", "scene")
_FREE_FIELDS = ("style", "styles", "groove", "library", "tags", "tag", "labels", "label")

Labels = dict[str, list[str]]


@dataclass(frozen=True)
class LabelSources:
    """Where labels come from.

    Args:
        folder: the names of the folders that a file lies in.
        name: the name of the file.
        tables: files of labels.
    """

    folder: bool = False
    name: bool = False
    tables: tuple[ByLocation[Labels], ...] = field(default=())

    def of(self, source: str) -> Labels:
        """Labels of a piece by the path of its file; of each kind without repeats."""
        path = PurePosixPath(source)
        found: Labels = {}
        if self.folder:
            for part in path.parent.parts:
                _join(found, labels_in(part))
        if self.name:
            _join(found, labels_in(path.stem))
        for table in self.tables:
            for labels in table.find(source):
                _join(found, labels)
        return found


def load_labels(sources: Sequence[str]) -> LabelSources:
    """Read what `--labels` names.

    Args:
        sources: `folder`, `name`, or .jsonl, .csv and .tsv files.

    Raises:
        ConfigError: a file that cannot be read, or one that says nothing of genre, mood or scene.
    """
    files = [Path(source) for source in sources if source not in (FROM_FOLDER, FROM_NAME)]
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{_FLAG} {file}: found no such file; allowed: {FROM_FOLDER} (names of folders), "
                f"{FROM_NAME} (names of files), a .jsonl, .csv or .tsv file"
            )
    return LabelSources(
        folder=FROM_FOLDER in sources,
        name=FROM_NAME in sources,
        tables=tuple(_load_table(file) for file in files),
    )


def _load_table(path: Path) -> ByLocation[Labels]:
    table = ByLocation(_entries(path))
    if not table.num_entries:
        fields = ", ".join((*_NAMED_FIELDS, *_FREE_FIELDS))
        raise ConfigError(
            f"{_FLAG} {path}: found no genre, mood or scene in it; looked into the fields {fields}"
        )
    return table


def _entries(path: Path) -> Iterator[tuple[str, Labels]]:
    for number, entry in _rows(path):
        location = text_of(entry, _LOCATION_FIELDS, f"{_FLAG} {path}, line {number}")
        labels: Labels = {}
        for name in _NAMED_FIELDS:
            for text in _texts(entry.get(name)):
                _join(labels, {name: labels_in(text).get(name, [text.strip()])})
        for name in _FREE_FIELDS:
            for text in _texts(entry.get(name)):
                _join(labels, labels_in(text))
        if labels:
            yield location, labels


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() not in (".csv", ".tsv"):
        yield from read_objects(path, _FLAG)
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in (reader := csv.DictReader(file, delimiter=delimiter)):
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{_FLAG} {path} cannot be read ({error})") from error


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _join(labels: Labels, others: Labels) -> None:
    for kind, names in others.items():
        known = labels.setdefault(kind, [])
        known += [name for name in names if name not in known]
