"""Small JSON files in which one try of a build tells the next what is done: whole, or none."""

import json
import os
from pathlib import Path
from typing import Any


def write_note(path: Path, content: Any, *, beside: Path | None = None) -> None:
    """Write a note that outlives a loss of power as soon as it has its name.

    Args:
        path: of the note; one that is there gives way at once.
        content: as JSON takes it.
        beside: folder of the same disk for what is not finished; that of the note if not given.
    """
    folder = path.parent if beside is None else beside
    # Tasks of a killed try may still be writing when the next one does.
    unfinished = folder / f".{path.name}.{os.getpid()}.unfinished"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def read_note(path: Path) -> Any:
    """What a note says; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on the disk, not only what stands behind them."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
