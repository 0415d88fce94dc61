"""Proving a shard folder from its bytes: sums, counts, every piece decoded, every split.

Reads the tars as any tar reader would, so it does not trust the index that it checks.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from meloformer.errors import ConfigError, ShardError, TokenError
from meloformer.shards.content import note_key, split_of, tune_hash
from meloformer.shards.manifest import (
    REJECTED_NAME,
    SPLITS,
    Manifest,
    sha256_of,
)
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.shards.tars import FACTS_SUFFIX, IDS_SUFFIX
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts

DUPLICATE = "duplicate"

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
                yield PlainPiece(key, ids, json.loads(_content(tar, facts_member)))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ShardError(f"{path} cannot be read as a shard ({error})") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def find_faults(
    folder: ShardFolder, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[str]:
    """Everything that is wrong with a folder, one line each; none where all is well.

    Args:
        folder: opened, so its manifest adds up and its files have their sizes.
        on_progress: called with (pieces done, pieces in all).
    """
    yield from _faults_of_rejected(folder.path, folder.manifest)
    seen: dict[str, str] = {}
    done = 0
    for split in SPLITS:
        try:
            index = folder.split(split)
        except ShardError as error:
            yield str(error)
            continue
        for shard, entry in enumerate(index.entries):
            yield from _faults_of_shard(folder, split, index, shard, seen)
            done += entry.pieces
            on_progress(done, folder.manifest.num_pieces)


def _faults_of_shard(
    folder: ShardFolder, split: str, index: SplitIndex, shard: int, seen: dict[str, str]
) -> Iterator[str]:
    entry = index.entries[shard]
    path = folder.path / entry.file
    found = sha256_of(path)
    if found != entry.sha256:
        yield f"{path}: found sha256 {found[:16]}, expected {entry.sha256[:16]}"
    sums: Counter[str] = Counter()
    try:
        for piece, plain in zip_longest(index.pieces_of_shard(shard), read_tar(path)):
            if piece is None or plain is None:
                yield f"{path}: its index and the tar hold different numbers of pieces"
                return
            place = f"{path}: piece {plain.key}"
            if plain.key in seen:
                yield f"{place} stands in {seen[plain.key]} too"
            seen[plain.key] = entry.file
            yield from (f"{place}: {fault}" for fault in _faults_of_piece(index, piece, plain))
            tune = np.array([int(plain.facts["tune"], 16)], dtype=np.uint64)
            belongs = SPLITS[split_of(tune, folder.manifest.settings)[0]]
            if belongs != split:
                yield f"{place}: found in split {split}, expected {belongs}"
            sums.update(
                pieces=1,
                bars=plain.facts["num_bars"],
                notes=plain.facts["num_notes"],
                tokens=len(plain.ids),
            )
    except (ShardError, ValueError, KeyError, TypeError) as error:
        yield f"{path}: {error}"
        return
    yield from _differences(
        f"{path}: sum of ", {name: (sums[name], getattr(entry, name)) for name in sums}
    )


def _faults_of_piece(index: SplitIndex, piece: int, plain: PlainPiece) -> Iterator[str]:
    try:
        by_offset = index.read(piece)
        facts = index.facts(piece)
        quantised = decode(plain.ids)
    except (ShardError, TokenError) as error:
        yield str(error)
        return
    if not (by_offset.dtype == plain.ids.dtype and np.array_equal(by_offset, plain.ids)):
        yield "read by offset it differs from the tar"
    if facts != plain.facts:
        yield "its facts read by offset differ from the tar"
    starts = bar_starts(plain.ids)
    if not np.array_equal(index.bar_starts(piece), starts):
        yield "its bars do not start where the index says"
    yield from _differences(
        "",
        {
            "key in the index": (index.key(piece), plain.key),
            "key by its notes": (note_key(quantised), plain.key),
            "tune": (f"{tune_hash(quantised):016x}", facts.get("tune")),
            "tokens in the index": (int(index.num_tokens[piece]), len(plain.ids)),
            "bars in the index": (int(index.num_bars[piece]), quantised.num_bars),
            "notes in the index": (int(index.num_notes[piece]), quantised.num_notes),
            "prefix in the index": (int(index.prefix_length[piece]), int(starts[0])),
            "tokens": (len(plain.ids), facts.get("num_tokens")),
            "bars": (quantised.num_bars, facts.get("num_bars")),
            "notes": (quantised.num_notes, facts.get("num_notes")),
        },
    )


def _faults_of_rejected(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Compare rejected.jsonl with the counts of the manifest."""
    path = folder / REJECTED_NAME
    reasons: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8") as file:
            reasons.update(json.loads(line)["reason"] for line in file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{path} cannot be read ({error})"
        return
    stated = manifest.rejected | {DUPLICATE: manifest.num_duplicates}
    for reason in sorted(stated.keys() | reasons.keys()):
        if reasons[reason] != stated.get(reason, 0):
            yield f"{path}: found {reasons[reason]} {reason}, expected {stated.get(reason, 0)}"


def _differences(prefix: str, pairs: dict[str, tuple[T, T]]) -> Iterator[str]:
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"{prefix}{name}: found {found}, expected {expected}"


def differences_from_webdataset(folder: ShardFolder) -> Iterator[str]:
    """Read all shards through the library webdataset alone, and compare; one line a difference.

    Raises:
        ConfigError: webdataset is not installed.
        ShardError: a shard is damaged.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ConfigError(
            f"--with webdataset needs the extra `shards` ({error}); "
            "install it with `pip install 'meloformer[shards]'`"
        ) from error
    for split in SPLITS:
        index = folder.split(split)
        if index.num_pieces == 0:
            continue
        urls = [str(folder.path / entry.file) for entry in index.entries]
        samples = _samples(webdataset.WebDataset(urls, shardshuffle=False).decode(), urls)
        for piece, sample in zip_longest(range(index.num_pieces), samples):
            if piece is None or sample is None:
                side = "ends before ours" if sample is None else "goes on after ours"
                yield f"{folder.path / split}: webdataset {side}, at piece {piece}"
                return
            place = f"{folder.path / split}: piece {index.key(piece)}"
            if sample["__key__"] != index.key(piece):
                yield f"{place}: webdataset reads {sample['__key__']} in its place"
            elif not np.array_equal(sample["npy"], index.read(piece)):
                yield f"{place}: webdataset reads other tokens"
            elif sample["json"] != index.facts(piece):
                yield f"{place}: webdataset reads other facts"


def _samples(dataset: Iterable[dict[str, Any]], urls: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ShardError(f"webdataset cannot read {', '.join(urls)} ({error})") from error
