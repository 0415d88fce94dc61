"""The manifest of a shard folder: what is in it, what made it, and the sums that prove it."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from meloformer.errors import ConfigError, ShardError
from meloformer.midi.filters import FilterSettings
from meloformer.tokens import vocabulary

FORMAT_NAME = "meloformer-shards"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
REJECTED_NAME = "rejected.jsonl"
CARD_NAME = "README.md"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What decides the bytes of a shard folder, next to the MIDI files themselves.

    Args:
        pedal: on lets the sustain pedal lengthen notes.
        valid_share: share of pieces for validation, by hash of their content.
        test_share: share of pieces kept for the last test, by hash of their content.
        pieces_per_shard: most pieces that one tar holds.
        bytes_per_shard: size at which a tar is closed; a single larger piece still gets one.
        near_copy_threshold: share of melodic figures in common from which two pieces are near
            copies and never stand in two splits; 0 looks for none.
        max_bar_tokens: most tokens of one bar with its prefix; no row of a training run may be
            shorter than its longest bar (--max_seq_len). 0 takes any bar.
        filters: what a file must be like to become a piece.
    """

    pedal: Literal["on", "off"] = "on"
    valid_share: float = 0.05
    test_share: float = 0.05
    pieces_per_shard: int = 4096
    bytes_per_shard: int = 64 << 20
    near_copy_threshold: float = 0.25
    max_bar_tokens: int = 2048
    filters: FilterSettings = field(default_factory=FilterSettings)

    def __post_init__(self) -> None:
        for name in ("valid_share", "test_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 0 up to, not with, 1")
        if self.valid_share + self.test_share >= 1.0:
            raise ConfigError(
                f"--valid_share {self.valid_share} and --test_share {self.test_share} leave no "
                "training pieces: their sum must stay under 1"
            )
        for name in ("pieces_per_shard", "bytes_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 1 or more")
        if not 0.0 <= self.near_copy_threshold < 1.0:
            raise ConfigError(
                f"--near_copy_threshold {self.near_copy_threshold}: allowed 0 (looks for no near "
                "copies) up to, not with, 1"
            )
        if self.max_bar_tokens < 0:
            raise ConfigError(
                f"--max_bar_tokens {self.max_bar_tokens}: allowed 0 (takes any bar) or more"
            )


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar, its index and its signatures: names relative to the folder, sizes, sums, counts.

    `longest_piece` is in tokens; `longest_bar` is the most tokens that a window of a single bar
    of any of its pieces takes.
    """

    file: str
    bytes: int
    sha256: str
    index_file: str
    index_bytes: int
    index_sha256: str
    signatures_file: str
    signatures_bytes: int
    signatures_sha256: str
    pieces: int
    bars: int
    notes: int
    tokens: int
    longest_piece: int
    longest_bar: int

    def files(self) -> tuple[tuple[str, int, str], ...]:
        """(name, bytes, sha256) of each of its files."""
        return (
            (self.file, self.bytes, self.sha256),
            (self.index_file, self.index_bytes, self.index_sha256),
            (self.signatures_file, self.signatures_bytes, self.signatures_sha256),
        )


@dataclass(frozen=True, kw_only=True)
class InputEntry:
    """Where MIDI came from, for each build or append.

    Args:
        name: last part of the path given.
        fingerprint: sum over file names and sizes.
        files: MIDI files seen.
        licences: licence files met, with a guess at what they say.
        columns: of tables met: what was taken as what, and what was left out.
    """

    name: str
    fingerprint: str
    files: int
    licences: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that manifest.json says, checked.

    Args:
        settings: settings of the build.
        inputs: what was read, one for the build and for each append.
        num_in: MIDI files seen; pieces + duplicates + rejected.
        num_duplicates: exact note copies left out.
        rejected: files left out by reason.
        quantised: sums of the quantiser's counts over all files that passed the filters.
        num_clusters: clusters of two or more near copies.
        num_near_copies: pieces in them.
        splits: shards of each split, in the order in which pieces are numbered.
        tokenizer_fingerprint: vocabulary of the tokens.
    """

    settings: ShardSettings
    inputs: tuple[InputEntry, ...]
    num_in: int
    num_duplicates: int
    rejected: dict[str, int]
    quantised: dict[str, int]
    num_clusters: int
    num_near_copies: int
    splits: dict[str, tuple[ShardEntry, ...]]
    tokenizer_fingerprint: str

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def num_pieces(self) -> int:
        return sum(shard.pieces for shard in self.shards())

    def shards(self) -> Iterator[ShardEntry]:
        """All shards of all splits."""
        for split in SPLITS:
            yield from self.splits[split]

    def total(self, split: str, what: Literal["pieces", "bars", "notes", "tokens", "bytes"]) -> int:
        """Sum of one count over the shards of a split."""
        return sum(getattr(shard, what) for shard in self.splits[split])

    def to_json(self) -> dict[str, Any]:
        """The manifest as it stands on disk; no times, paths or worker counts, so it repeats."""
        totals = ("pieces", "bars", "notes", "tokens")
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "tokenizer": {
                "name": vocabulary.vocabulary_json()["name"],
                "fingerprint": self.tokenizer_fingerprint,
                "vocabulary_size": vocabulary.VOCAB_SIZE,
            },
            "settings": asdict(self.settings),
            "inputs": [asdict(entry) for entry in self.inputs],
            "counts": {
                "in": self.num_in,
                "pieces": self.num_pieces,
                "duplicates": self.num_duplicates,
                "rejected": self.num_rejected,
            },
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "near_copies": {"clusters": self.num_clusters, "pieces": self.num_near_copies},
            "quantised": dict(sorted(self.quantised.items())),
            "splits": {
                split: {what: self.total(split, what) for what in totals}  # type: ignore[arg-type]
                | {"shards": [asdict(shard) for shard in self.splits[split]]}
                for split in SPLITS
            },
        }

    def save(self, folder: Path) -> None:
        """Write manifest.json into a shard folder, last of all: it says that the rest is there."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        unfinished = folder / f".{MANIFEST_NAME}.unfinished"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / MANIFEST_NAME)


class CountError(ShardError):
    """A manifest whose counts do not add up: files were lost, or it was changed by hand."""


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a shard folder on disk.

    Raises:
        ShardError: no manifest, or what `parse_manifest` raises.
    """
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder} is no shard folder: found no {MANIFEST_NAME} in it; "
            "make one with `make shard-data MIDI=<folder> OUT=<folder>`"
        ) from error
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error}); check the disk") from error
    return parse_manifest(data, str(path))


def parse_manifest(text: bytes, path: str, *, counts_must_fit: bool = True) -> Manifest:
    """Check what a manifest.json holds.

    Args:
        text: the whole file.
        path: where it lies, for messages.
        counts_must_fit: off leaves counts that do not add up to whoever looks for all faults.

    Raises:
        CountError: its counts do not add up.
        ShardError: not JSON, not ours, or of another format version.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShardError(
            f"{path} cannot be read as JSON ({error}); make the shards again with `make shard-data`"
        ) from error
    found_format = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found_format != FORMAT_NAME:
        raise ShardError(
            f"{path}: found format {found_format!r}, expected {FORMAT_NAME!r}; "
            "give a folder made by `make shard-data`"
        )
    if data.get("format_version") != FORMAT_VERSION:
        raise ShardError(
            f"{path}: found format version {data.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}; make the shards again with this version's "
            "`make shard-data`, or use the version of MeloFormer that made them"
        )
    try:
        manifest = _manifest_from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ShardError(
            f"{path}: an entry is missing or wrong ({type(error).__name__}: {error}); "
            "make the shards again with `make shard-data`"
        ) from error
    if counts_must_fit:
        _check_counts(path, data, manifest)
    return manifest


def _manifest_from_json(data: dict[str, Any]) -> Manifest:
    return Manifest(
        settings=settings_from_json(data["settings"]),
        inputs=tuple(_input_from_json(entry) for entry in data["inputs"]),
        num_in=int(data["counts"]["in"]),
        num_duplicates=int(data["counts"]["duplicates"]),
        rejected={str(reason): int(count) for reason, count in data["rejected_by_reason"].items()},
        quantised={str(name): int(count) for name, count in data["quantised"].items()},
        num_clusters=int(data["near_copies"]["clusters"]),
        num_near_copies=int(data["near_copies"]["pieces"]),
        splits={
            split: tuple(_shard_from_json(shard) for shard in data["splits"][split]["shards"])
            for split in SPLITS
        },
        tokenizer_fingerprint=str(data["tokenizer"]["fingerprint"]),
    )


def _shard_from_json(data: dict[str, Any]) -> ShardEntry:
    entry = ShardEntry(**data)
    for item in fields(entry):
        value = getattr(entry, item.name)
        if type(value) is not item.type or (isinstance(value, int) and value < 0):
            raise TypeError(f"{item.name} of {entry.file}: found {value!r}")
    for name, _, _ in entry.files():
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"file {name!r} leads out of the folder")
    return entry


def settings_from_json(data: dict[str, Any]) -> ShardSettings:
    """Settings as `dataclasses.asdict` wrote them; folders older than a limit had none."""
    filters = FilterSettings(**data["filters"])
    return ShardSettings(**{"max_bar_tokens": 0, **data, "filters": filters})


def _input_from_json(data: dict[str, Any]) -> InputEntry:
    lists = {name: tuple(data.get(name, ())) for name in ("licences", "columns")}
    return InputEntry(**{**data, **lists})


def _check_counts(path: str, data: dict[str, Any], manifest: Manifest) -> None:
    """Refuse a manifest whose stated sums are not the sums of its parts."""
    counts = manifest.to_json()["counts"]
    if data["counts"] != counts:
        raise CountError(f"{path}: found counts {data['counts']}, the shards listed give {counts}")
    parts = manifest.num_pieces + manifest.num_duplicates + manifest.num_rejected
    if manifest.num_in != parts:
        raise CountError(
            f"{path}: found in = {manifest.num_in}, expected pieces + duplicates + rejected = "
            f"{manifest.num_pieces} + {manifest.num_duplicates} + {manifest.num_rejected} = {parts}"
        )


def check_tokenizer(folder: str, manifest: Manifest) -> None:
    """Refuse shards whose token ids mean something else.

    Args:
        folder: path or URL, for the message.
        manifest: its own.

    Raises:
        ShardError: the manifest names another vocabulary.
    """
    expected = vocabulary.fingerprint()
    if manifest.tokenizer_fingerprint != expected:
        raise ShardError(
            f"{folder}/{MANIFEST_NAME}: found tokenizer fingerprint "
            f"{manifest.tokenizer_fingerprint[:16]}, expected {expected[:16]} (this version's); "
            "make the shards again with `make shard-data`"
        )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder where a shard or an index is missing or has another size.

    Raises:
        ShardError: names the file, what was found and what was expected.
    """
    for shard in manifest.shards():
        for name, size, _ in shard.files():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise ShardError(
                    f"{path}: found {'no such file' if found is None else f'{found} bytes'}, "
                    f"expected {size} bytes; copy it again from where the shards were made, "
                    "or make them again with `make shard-data`"
                )


def changed_settings(old: ShardSettings, new: ShardSettings) -> list[str]:
    """Settings that differ, as `name old -> new`."""
    before, after = flat_settings(old), flat_settings(new)
    return [
        f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    ]


def flat_settings(settings: ShardSettings) -> dict[str, Any]:
    """All settings by the names of their flags, filters among them."""
    flat = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return flat | asdict(flat.pop("filters"))
