"""The sum by which a file is known again."""

import hashlib
from pathlib import Path

_READ_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """sha256 of a file as hex, read in pieces: hashlib's own way came with Python 3.11."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
