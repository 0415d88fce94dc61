"""Proving one shard from its bytes: sums, counts, every piece decoded, its index, its copies.

Reads the tar as any tar reader would, so it does not trust the index that it checks.
"""

import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from meloformer.errors import ShardError, TokenError
from meloformer.file_sums import sha256_of
from meloformer.shards.bar_tokens import longest_bar
from meloformer.shards.content import KEY_LENGTH, note_key, tune_hash
from meloformer.shards.convert import describe
from meloformer.shards.index import ShardIndex
from meloformer.shards.known import load_copies
from meloformer.shards.manifest import MANIFEST_NAME, SPLITS, ShardEntry
from meloformer.shards.storage import Storage
from meloformer.shards.tars import FACTS_SUFFIX, IDS_DTYPE, IDS_SUFFIX
from meloformer.tokens.attributes import attributes_of
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts

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
NO_SHARD = -1  # of a key that rejected.jsonl names

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
    for piece in _pieces_or_faults(path, str(path)):
        if isinstance(piece, ShardError):
            raise piece
        yield piece


def _pieces_or_faults(path: Path, place: str) -> Iterator[PlainPiece | ShardError]:
    """Pieces of a tar in order; for each that cannot be read, what is wrong with it.

    Args:
        path: of the tar.
        place: its name for messages.

    Raises:
        ShardError: it is no tar of .npy and .json pairs from there on.
    """
    try:
        with tarfile.open(path) as tar:
            members = iter(tar)
            for ids_member, facts_member in zip_longest(members, members):
                if facts_member is None:
                    raise ValueError(f"it ends behind {ids_member.name}, without its facts")
                key = ids_member.name.removesuffix(IDS_SUFFIX)
                if (ids_member.name, facts_member.name) != (key + IDS_SUFFIX, key + FACTS_SUFFIX):
                    raise ShardError(
                        f"{place}: found {ids_member.name} and {facts_member.name} together, "
                        f"expected <key>{IDS_SUFFIX} and <key>{FACTS_SUFFIX}"
                    )
                ids_npy, facts_json = _content(tar, ids_member), _content(tar, facts_member)
                try:
                    yield _plain_piece(key, ids_npy, facts_json)
                except (EOFError, ValueError, RecursionError) as error:
                    yield ShardError(f"{place}: piece {key} cannot be read ({error})")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ShardError(f"{place} cannot be read as a shard ({error})") from error


def _plain_piece(key: str, ids_npy: bytes, facts_json: bytes) -> PlainPiece:
    ids = np.load(io.BytesIO(ids_npy), allow_pickle=False)
    facts = json.loads(facts_json)
    if ids.dtype != IDS_DTYPE or ids.ndim != 1 or not isinstance(facts, dict):
        raise ValueError(
            f"found ids of {ids.ndim} dimensions and {ids.dtype}, and facts of type "
            f"{type(facts).__name__}; expected 1 dimension and {IDS_DTYPE}, and an object"
        )
    return PlainPiece(key, ids, facts)


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
        quantised: the quantiser's counts, summed over these.
        is_complete: every piece could be read.
    """

    faults: list[str]
    rows: np.ndarray
    quantised: Counter[str] = field(default_factory=Counter)
    is_complete: bool = False


def check_shard(job: ShardJob, *, storage: Storage) -> ShardCheck:
    """Check the files of a shard and every piece in it; goes on behind every fault."""
    entry, faults = job.entry, list[str]()
    good = {name for name, *_ in entry.files() if _sum_is_right(storage, entry, name, faults)}
    beside = _Beside.load(storage, entry, good, faults)
    rows: list[tuple] = []
    quantised: Counter[str] = Counter()
    sums = dict.fromkeys(("pieces", "bars", "notes", "tokens", "longest_piece", "longest_bar"), 0)
    place = f"{storage.name}/{entry.file}"
    is_complete = True
    try:
        pieces = _pieces_or_faults(_fetch(storage, entry, entry.file), place)
        for number, plain in enumerate(pieces):
            if isinstance(plain, ShardError):
                faults.append(str(plain))
                is_complete = False
                continue
            faults += (
                f"{place}: piece {plain.key}: {fault}" for fault in beside.faults(number, plain)
            )
            if is_key(plain.key):
                rows.append(_row(plain, job))
            quantised.update(_quantised(plain.facts))
            starts = bar_starts(plain.ids)
            sums["pieces"] += 1
            sums["bars"] += _count(plain.facts, "num_bars")
            sums["notes"] += _count(plain.facts, "num_notes")
            sums["tokens"] += len(plain.ids)
            sums["longest_piece"] = max(sums["longest_piece"], len(plain.ids))
            if len(starts) > 1:
                sums["longest_bar"] = max(sums["longest_bar"], longest_bar(starts))
    except ShardError as error:
        if str(error) not in faults:  # a missing file is named once
            faults.append(str(error))
        is_complete = False
    if is_complete and entry.file not in good and sums["pieces"] < entry.pieces:
        # A tar reader takes a damaged header for the end.
        faults.append(f"{place}: can be read up to piece {sums['pieces']} of {entry.pieces}")
        is_complete = False
    if is_complete:
        faults += (
            f"{place}: found {name} = {found}, {MANIFEST_NAME} states {getattr(entry, name)}"
            for name, found in sums.items()
            if found != getattr(entry, name)
        )
    return ShardCheck(faults, np.array(rows, dtype=CHECKED_RECORD), quantised, is_complete)


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
        faults.append(
            f"{storage.name}/{name}: found sha256 {found[:16]}, expected {expected[:16]}; copy it "
            "again from where the shards were made"
        )
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


def _quantised(facts: dict[str, Any]) -> Counter[str]:
    """What quantising the file has cost, as the manifest adds it up."""
    counts = facts.get("quantised")
    found = Counter[str]()
    if isinstance(counts, dict):
        found.update({name: _count(counts, name) for name in counts})
    if isinstance(facts.get("recovered"), str):
        found[f"recovered_{facts['recovered']}"] += 1
    return found


def differences(prefix: str, pairs: Mapping[str, tuple[T, T]]) -> Iterator[str]:
    """A line for each pair of (found, expected) that differs."""
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"{prefix}{name}: found {found}, expected {expected}"
