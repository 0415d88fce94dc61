"""Real files: the folder of archives beside the repository, where there is one."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def archived_midi() -> Callable[[Path], Iterator[tuple[str, bytes]]]:
    """Name and bytes of every MIDI file in an archive below ../shared; skips where missing."""

    def members(archive: Path) -> Iterator[tuple[str, bytes]]:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith((".mid", ".midi")):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield member.name, stream.read()

    def read(relative: Path) -> Iterator[tuple[str, bytes]]:
        archive = SHARED / relative
        if not archive.exists():
            pytest.skip(f"{archive} is missing")
        return members(archive)

    return read
