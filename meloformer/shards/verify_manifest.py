"""What a folder says of itself in numbers: its manifest, its data card, its list of rejections."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.card import differences_from_card
from meloformer.shards.left_out import JOINS_TWO_SPLITS
from meloformer.shards.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    Manifest,
)
from meloformer.shards.storage import LocalFolder, Storage
from meloformer.shards.verify_shard import CHECKED_RECORD, NO_SHARD, is_key

DUPLICATE = "duplicate"
_ROWS_AT_ONCE = 1 << 16


def check_totals(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Compare the sums that manifest.json states with those of the parts that it lists.

    Args:
        storage: where it lies.
        manifest: its own, parsed; its counts need not fit.
    """
    place = f"{storage.name}/{MANIFEST_NAME}: "
    stated = json.loads(storage.read_bytes(MANIFEST_NAME))
    derived = manifest.to_json()
    yield from _stated(place + "counts: ", stated["counts"], derived["counts"])
    for split in SPLITS:
        totals = {name: sum_ for name, sum_ in derived["splits"][split].items() if name != "shards"}
        yield from _stated(f"{place}{split}: ", stated["splits"][split], totals)
    yield from _stated(place + "tokenizer: ", stated["tokenizer"], derived["tokenizer"])
    parts = (manifest.num_pieces, manifest.num_duplicates, manifest.num_rejected)
    if manifest.num_in != sum(parts):
        yield (
            f"{place}found in = {manifest.num_in}, expected pieces + duplicates + rejected = "
            f"{' + '.join(map(str, parts))} = {sum(parts)}"
        )
    of_inputs = sum(entry.files for entry in manifest.inputs)
    if of_inputs != manifest.num_in:
        yield f"{place}found in = {manifest.num_in}, the files of its inputs add up to {of_inputs}"


def _stated(prefix: str, stated: dict[str, Any], derived: dict[str, Any]) -> Iterator[str]:
    for name, value in derived.items():
        if stated.get(name) != value:
            yield f"{prefix}found {name} = {stated.get(name)}, its shards and reasons give {value}"


def check_quantised(storage: Storage, manifest: Manifest, found: Counter[str]) -> Iterator[str]:
    """Compare the quantiser's counts with those of all pieces.

    Args:
        storage: where they lie.
        manifest: of the folder; files that are no pieces any more add to its counts.
        found: summed over the facts of all pieces.
    """
    only_pieces = not manifest.num_duplicates and not manifest.rejected.get(JOINS_TWO_SPLITS)
    for name in sorted(found.keys() | manifest.quantised.keys()):
        stated = manifest.quantised.get(name, 0)
        if stated < found[name] or (only_pieces and stated > found[name]):
            yield (
                f"{storage.name}/{MANIFEST_NAME}: quantised: found {name} = {stated}, its pieces "
                f"give {found[name]}"
            )


def check_card(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Compare the data card with the manifest."""
    place = f"{storage.name}/{CARD_NAME}"
    try:
        text = storage.read_bytes(CARD_NAME).decode("utf-8", errors="replace")
    except ShardError as error:
        yield _not_read(place, error)
        return
    yield from (f"{place}: {fault}" for fault in differences_from_card(text, manifest))


def check_rejected(
    storage: Storage, manifest: Manifest, keep: Callable[[np.ndarray], object]
) -> Iterator[str]:
    """Compare rejected.jsonl with the counts of the manifest.

    Args:
        storage: where it lies.
        manifest: what it should say.
        keep: takes CHECKED_RECORD of the keys that copies are said to repeat.
    """
    place = f"{storage.name}/{REJECTED_NAME}"
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    keys: list[str] = []
    try:
        with _open_rejected(storage) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    reason, key = _reason_and_key(line)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    wrong.append(f"line {number} ({type(error).__name__}: {error})")
                    continue
                reasons[reason] += 1
                keys += [] if key is None else [key]
                if len(keys) == _ROWS_AT_ONCE:
                    keep(_rows_of(keys))
                    keys.clear()
            keep(_rows_of(keys))
    except (ShardError, OSError) as error:
        yield _not_read(place, error)
        return
    stated = manifest.rejected | {DUPLICATE: manifest.num_duplicates}
    if wrong:
        more = f", and {len(wrong) - 1} lines more" if len(wrong) > 1 else ""
        yield f"{place}: found no rejection in {wrong[0]}{more}"
        # Which reasons these had is not known; how many lines there ought to be is.
        found = {"lines": reasons.total() + len(wrong)}
        yield from _counted(place, Counter(found), {"lines": sum(stated.values())})
    else:
        yield from _counted(place, reasons, stated)


def _not_read(place: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
        return f"{place}: found no such file; copy it again from where the shards were made"
    return f"{place} cannot be read ({type(error).__name__}: {error})"


def _reason_and_key(line: bytes) -> tuple[str, str | None]:
    """What a line says; the key of a copy, else None."""
    entry = json.loads(line)
    reason, path = entry["reason"], entry["path"]
    if not isinstance(reason, str) or not isinstance(path, str):
        raise TypeError(f"path {path!r} and reason {reason!r}")
    if reason != DUPLICATE:
        return reason, None
    if not is_key(entry["key"]):
        raise ValueError(f"{entry['key']!r} is no key")
    return reason, entry["key"]


def _counted(place: str, found: Counter[str], stated: dict[str, int]) -> Iterator[str]:
    for reason in sorted(stated.keys() | found.keys()):
        if found[reason] != stated.get(reason, 0):
            what = "lines" if reason == "lines" else f"lines of reason {reason}"
            yield (
                f"{place}: found {found[reason]} {what}, expected {stated.get(reason, 0)} by "
                f"{MANIFEST_NAME}"
            )


def _rows_of(keys: list[str]) -> np.ndarray:
    rows = np.zeros(len(keys), CHECKED_RECORD)
    rows["key"] = [key.encode() for key in keys]
    rows["shard"] = NO_SHARD
    return rows


def _open_rejected(storage: Storage) -> BinaryIO:
    if isinstance(storage, LocalFolder):  # line by line, however many there are
        return (storage.path / REJECTED_NAME).open("rb")
    return io.BytesIO(storage.read_bytes(REJECTED_NAME))
