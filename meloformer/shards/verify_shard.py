"""Proving one shard from its bytes: sums, counts, every piece decoded, its index, its copies.

Reads the tar as any tar reader would, so it does not trust the index that it checks.
"""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from meloformer.errors import ShardError, TokenError
from meloformer.shards.content import KEY_LENGTH, note_key, tune_hash
from meloformer.shards.convert import describe
from meloformer.shards.index import ShardIndex
from meloformer.shards.known import load_copies
from meloformer.shards.manifest import SPLITS, ShardEntry, sha256_of
from meloformer.shards.storage import Storage
from meloformer.shards.tars import FACTS_SUFFIX, IDS_DTYPE, IDS_SUFFIX
from meloformer.tokens.attributes import attributes_of
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts, window_length

# What the whole folder has to know of each piece.
CHECKED_RECORD = np.dtype(
    [
        ("key", f"S{KEY_LENGTH}"),
        ("cluster", f"S{KEY_LENGTH}"),
        ("tune", np.uint64),
        ("split", np.uint8),
        ("shard", np.int32),  # among all shards of the folder
    ]
)
_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
_TUNE = re.compile(r"[0-9a-f]{16}")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PlainPiece:
    """A piece as a tar reader sees it.

    Args:
        key: name without suffix.
        ids: (T,) uint16 token ids.
        facts: the JSON beside them.
    """

    key: str
    ids: np.ndarray
    facts: dict[str, Any]


def read_tar(path: Path) -> Iterator[PlainPiece]:
    """Pieces of a shard in order, by the standard library alone.

    Raises:
        ShardError: it is no tar of .npy and .json pairs.
    """
    try:
        with tarfile.open(path) as tar:
            members = iter(tar)
            for ids_member, facts_member in zip(members, members, strict=True):
                key = ids_member.name.removesuffix(IDS_SUFFIX)
                if (ids_member.name, facts_member.name) != (key + IDS_SUFFIX, key + FACTS_SUFFIX):
                    raise ShardError(
                        f"{path}: found {ids_member.name} and {facts_member.name} together, "
                        f"expected <key>{IDS_SUFFIX} and <key>{FACTS_SUFFIX}"
                    )
                ids = np.load(io.BytesIO(_content(tar, ids_member)), allow_pickle=False)
                facts = json.loads(_content(tar, facts_member))
                if ids.dtype != IDS_DTYPE or ids.ndim != 1 or not isinstance(facts, dict):
                    raise ShardError(
                        f"{path}: piece {key}: found ids of {ids.ndim} dimensions and {ids.dtype}, "
                        f"and facts of type {type(facts).__name__}; expected 1 dimension and "
                        f"{IDS_DTYPE}, and an object"
                    )
                yield PlainPiece(key, ids, facts)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ShardError(f"{path} cannot be read as a shard ({error})") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


@dataclass(frozen=True)
class ShardJob:
    """One shard to be checked.

    Args:
        number: among all shards of the folder.
        split: that it stands in.
        entry: what the manifest says of it.
    """

    number: int
    split: str
    entry: ShardEntry


@dataclass(frozen=True, eq=False)
class ShardCheck:
    """What checking found.

    Args:
        faults: one line each.
        rows: (P,) CHECKED_RECORD of the pieces that could be read.
    """

    faults: list[str]
    rows: np.ndarray


def check_shard(job: ShardJob, *, storage: Storage) -> ShardCheck:
    """Check the files of a shard and every piece in it; goes on behind every fault."""
    entry, faults = job.entry, list[str]()
    good = {name for name, *_ in entry.files() if _sum_is_right(storage, entry, name, faults)}
    beside = _Beside.load(storage, entry, good, faults)
    rows: list[tuple] = []
    sums = {"pieces": 0, "bars": 0, "notes": 0, "tokens": 0, "longest_piece": 0}
    longest_bar = 0
    place = f"{storage.name}/{entry.file}"
    try:
        for number, plain in enumerate(read_tar(_fetch(storage, entry, entry.file))):
            faults += (
                f"{place}: piece {plain.key}: {fault}" for fault in beside.faults(number, plain)
            )
            if is_key(plain.key):
                rows.append(_row(plain, job))
            sums["pieces"] += 1
            sums["bars"] += _count(plain.facts, "num_bars")
            sums["notes"] += _count(plain.facts, "num_notes")
            sums["tokens"] += len(plain.ids)
            sums["longest_piece"] = max(sums["longest_piece"], len(plain.ids))
            longest_bar = max(longest_bar, _longest_bar(plain.ids))
    except ShardError as error:
        if str(error) not in faults:  # a missing file is named once
            faults.append(str(error))
    else:
        faults += differences(
            f"{place}: sums of its pieces: ",
            {name: (found, getattr(entry, name)) for name, found in sums.items()},
        )
        if entry.longest_bar < longest_bar:
            faults.append(f"{place}: longest_bar: found {longest_bar}, stated {entry.longest_bar}")
    return ShardCheck(faults, np.array(rows, dtype=CHECKED_RECORD))


def _fetch(storage: Storage, entry: ShardEntry, name: str) -> Path:
    [(_, size, sha256)] = (stored for stored in entry.files() if stored[0] == name)
    return storage.fetch(name, num_bytes=size, sha256=sha256)


def _sum_is_right(storage: Storage, entry: ShardEntry, name: str, faults: list[str]) -> bool:
    [expected] = (sha256 for file, _, sha256 in entry.files() if file == name)
    try:
        found = sha256_of(_fetch(storage, entry, name))
    except (ShardError, OSError) as error:
        faults.append(str(error))
        return False
    if found != expected:
        faults.append(f"{storage.name}/{name}: found sha256 {found[:16]}, expected {expected[:16]}")
    return found == expected


@dataclass(frozen=True, eq=False)
class _Beside:
    """What lies beside the pieces of a tar: each part None where it is damaged.

    Args:
        index: says where each piece lies.
        tar: (bytes,) uint8 that it points into.
        copies: (P,) COPY_RECORD.
    """

    index: ShardIndex | None
    tar: np.ndarray | None
    copies: np.ndarray | None

    @classmethod
    def load(
        cls, storage: Storage, entry: ShardEntry, good: set[str], faults: list[str]
    ) -> "_Beside":
        index = tar = copies = None
        try:
            if {entry.file, entry.index_file} <= good:
                path = _fetch(storage, entry, entry.index_file)
                index = ShardIndex.from_bytes(path.read_bytes(), path)
                tar = np.memmap(_fetch(storage, entry, entry.file), np.uint8, mode="r")
            if entry.signatures_file in good:
                copies = load_copies(_fetch(storage, entry, entry.signatures_file), entry)
        except (ShardError, OSError, ValueError) as error:
            faults.append(str(error))
        return cls(index, tar, copies)

    def faults(self, number: int, plain: PlainPiece) -> Iterator[str]:
        """What is wrong with a piece, or with what lies beside it.

        Args:
            number: of the piece in its tar.
            plain: as the tar holds it.
        """
        try:
            quantised = decode(plain.ids)
        except TokenError as error:
            yield f"its tokens do not decode: {error}"
            return
        facts = plain.facts
        yield from differences(
            "",
            {
                "key by its notes": (note_key(quantised), plain.key),
                "tune": (f"{tune_hash(quantised):016x}", facts.get("tune")),
            },
        )
        described = describe(quantised, attributes_of(quantised), len(plain.ids))
        yield from differences(
            "",
            {f"fact {name}": (facts.get(name), value) for name, value in described.items()},
        )
        if not is_key(facts.get("cluster")):
            yield f"found cluster {facts.get('cluster')!r}, expected the key of a piece"
        if self.index is not None:
            yield from self._faults_of_index(number, plain)
        if self.copies is not None and number < len(self.copies):
            row = self.copies[number]
            found = (f"{int(row['tune']):016x}", row["cluster"].decode(errors="replace"))
            if found != (facts.get("tune"), facts.get("cluster")):
                yield "the file of signatures gives it another tune or cluster than its facts"

    def _faults_of_index(self, number: int, plain: PlainPiece) -> Iterator[str]:
        assert self.index is not None, "asked only where there is one"
        assert self.tar is not None, "it comes with the index"
        arrays = self.index
        if number >= arrays.num_pieces:
            yield "it stands behind the last piece of the index"
            return
        start, size = int(arrays.ids_offset[number]), len(plain.ids) * IDS_DTYPE.itemsize
        ids = plain.ids.astype(IDS_DTYPE).tobytes()
        if self.tar[start : start + size].tobytes() != ids:
            yield "its tokens do not lie where the index says"
        start, size = int(arrays.facts_offset[number]), int(arrays.facts_size[number])
        if not _is_json(self.tar[start : start + size].tobytes(), plain.facts):
            yield "its facts do not lie where the index says"
        starts = bar_starts(plain.ids)
        # Of each piece before it, its bars and the end of its last.
        first = int(arrays.num_bars[:number].sum()) + number
        stated = arrays.bar_starts[first : first + int(arrays.num_bars[number]) + 1]
        if not np.array_equal(stated, starts):
            yield "its bars do not start where the index says"
        yield from differences(
            "in the index: ",
            {
                "key": (arrays.keys[number].decode(errors="replace"), plain.key),
                "crc32": (int(arrays.ids_crc32[number]), zlib.crc32(ids)),
                "tokens": (int(arrays.num_tokens[number]), len(plain.ids)),
                "bars": (int(arrays.num_bars[number]), len(starts) - 1),
                "notes": (int(arrays.num_notes[number]), plain.facts.get("num_notes")),
                "prefix": (int(arrays.prefix_length[number]), int(starts[0])),
            },
        )


def _is_json(data: bytes, expected: dict[str, Any]) -> bool:
    try:
        return json.loads(data) == expected
    except ValueError:
        return False


def is_key(name: object) -> bool:
    """Can be the key of a piece."""
    return isinstance(name, str) and _KEY.fullmatch(name) is not None


def _row(plain: PlainPiece, job: ShardJob) -> tuple:
    # What a piece says wrongly is named by then; here it stands alone.
    cluster, tune = plain.facts.get("cluster"), plain.facts.get("tune")
    return (
        plain.key.encode(),
        str(cluster if is_key(cluster) else plain.key).encode(),
        int(tune, 16) if isinstance(tune, str) and _TUNE.fullmatch(tune) else 0,
        SPLITS.index(job.split),
        job.number,
    )


def _count(facts: dict[str, Any], name: str) -> int:
    return facts[name] if isinstance(facts.get(name), int) else 0


def _longest_bar(ids: np.ndarray) -> int:
    """Most tokens that a window of one bar takes."""
    starts = bar_starts(ids)
    bars = np.arange(len(starts) - 1)
    return int(np.max(window_length(int(starts[0]), starts, bars, bars + 1), initial=0))


def differences(prefix: str, pairs: Mapping[str, tuple[T, T]]) -> Iterator[str]:
    """A line for each pair of (found, expected) that differs."""
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"{prefix}{name}: found {found}, expected {expected}"
