"""Ways to spoil a shard folder that a test may write to."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.file_sums import sha256_of


def flip_a_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def make_sums_fit(folder: Path) -> None:
    """State sizes and sums of the files as they are: damage that only the content can show."""

    def edit(data: dict[str, Any]) -> None:
        for split in data["splits"].values():
            for shard in split["shards"]:
                for kind in ("", "index_", "signatures_"):
                    path = folder / shard[f"{kind}file"]
                    shard[f"{kind}bytes"] = path.stat().st_size
                    shard[f"{kind}sha256"] = sha256_of(path)

    edit_manifest(folder, edit)


def edit_arrays(path: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change arrays of an .npz."""
    with np.load(path) as archive:
        arrays = dict(archive)
    edit(arrays)
    np.savez(path, **arrays)


def edit_copies(path: Path, edit: Callable[[np.ndarray], object]) -> None:
    """Change the rows of an .npy."""
    rows = np.load(path)
    edit(rows)
    np.save(path, rows)


def edit_facts(path: Path, number: int, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the facts of one piece of a tar; everything else stays where it is."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    member, data = members[2 * number + 1]
    facts = json.loads(data)
    edit(facts)
    text = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
    members[2 * number + 1] = (member, text)
    member.size = len(text)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
