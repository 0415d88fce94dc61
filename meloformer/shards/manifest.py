"""The manifest of a shard folder: what is in it, what made it, and the sums that prove it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from meloformer.errors import ConfigError, ShardError
from meloformer.tokens import vocabulary

FORMAT_NAME = "meloformer-shards"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
REJECTED_NAME = "rejected.jsonl"
SPLITS = ("train", "valid", "test")

_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What decides the bytes of a shard folder, next to the MIDI files themselves.

    Args:
        pedal: on lets the sustain pedal lengthen notes.
        valid_share: share of pieces for validation, by hash of their content.
        test_share: share of pieces kept for the last test, by hash of their content.
        pieces_per_shard: most pieces that one tar holds.
        bytes_per_shard: size at which a tar is closed; a single larger piece still gets one.
    """

    pedal: Literal["on", "off"] = "on"
    valid_share: float = 0.05
    test_share: float = 0.05
    pieces_per_shard: int = 4096
    bytes_per_shard: int = 64 << 20

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


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar and its index: names relative to the shard folder, sizes, sums and counts."""

    file: str
    bytes: int
    sha256: str
    index_file: str
    index_bytes: int
    index_sha256: str
    pieces: int
    bars: int
    notes: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class InputEntry:
    """Where the MIDI came from: last part of the path given, sum over file names and sizes."""

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that manifest.json says, checked.

    Args:
        settings: settings of the build.
        source: what was read.
        num_in: MIDI files seen; pieces + duplicates + rejected.
        num_duplicates: exact note copies left out.
        rejected: files left out by reason.
        quantised: sums of the quantiser's counts over all files that became a piece or duplicate.
        splits: shards of each split, in the order in which pieces are numbered.
        tokenizer_fingerprint: vocabulary of the tokens.
    """

    settings: ShardSettings
    source: InputEntry
    num_in: int
    num_duplicates: int
    rejected: dict[str, int]
    quantised: dict[str, int]
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
            "input": asdict(self.source),
            "counts": {
                "in": self.num_in,
                "pieces": self.num_pieces,
                "duplicates": self.num_duplicates,
                "rejected": self.num_rejected,
            },
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "quantised": dict(sorted(self.quantised.items())),
            "splits": {
                split: {what: self.total(split, what) for what in totals}  # type: ignore[arg-type]
                | {"shards": [asdict(shard) for shard in self.splits[split]]}
                for split in SPLITS
            },
        }

    def save(self, folder: Path) -> None:
        """Write manifest.json into a shard folder."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a shard folder.

    Raises:
        ShardError: no manifest, not JSON, not ours, of another format version, or its counts do
            not add up.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder} is no shard folder: found no {MANIFEST_NAME} in it; "
            "make one with `make shard-data MIDI=<folder> OUT=<folder>`"
        ) from error
    except (OSError, ValueError) as error:
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
    _check_counts(path, data, manifest)
    return manifest


def _manifest_from_json(data: dict[str, Any]) -> Manifest:
    return Manifest(
        settings=ShardSettings(**data["settings"]),
        source=InputEntry(**data["input"]),
        num_in=int(data["counts"]["in"]),
        num_duplicates=int(data["counts"]["duplicates"]),
        rejected={str(reason): int(count) for reason, count in data["rejected_by_reason"].items()},
        quantised={str(name): int(count) for name, count in data["quantised"].items()},
        splits={
            split: tuple(ShardEntry(**shard) for shard in data["splits"][split]["shards"])
            for split in SPLITS
        },
        tokenizer_fingerprint=str(data["tokenizer"]["fingerprint"]),
    )


def _check_counts(path: Path, data: dict[str, Any], manifest: Manifest) -> None:
    """Refuse a manifest whose stated sums are not the sums of its parts."""
    counts = manifest.to_json()["counts"]
    if data["counts"] != counts:
        raise ShardError(f"{path}: found counts {data['counts']}, the shards listed give {counts}")
    parts = manifest.num_pieces + manifest.num_duplicates + manifest.num_rejected
    if manifest.num_in != parts:
        raise ShardError(
            f"{path}: found in = {manifest.num_in}, expected pieces + duplicates + rejected = "
            f"{manifest.num_pieces} + {manifest.num_duplicates} + {manifest.num_rejected} = {parts}"
        )


def check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """Refuse shards whose token ids mean something else.

    Raises:
        ShardError: the manifest names another vocabulary.
    """
    expected = vocabulary.fingerprint()
    if manifest.tokenizer_fingerprint != expected:
        raise ShardError(
            f"{folder / MANIFEST_NAME}: found tokenizer fingerprint "
            f"{manifest.tokenizer_fingerprint[:16]}, expected {expected[:16]} (this version's); "
            "make the shards again with `make shard-data`"
        )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder where a shard or an index is missing or has another size.

    Raises:
        ShardError: names the file, what was found and what was expected.
    """
    for shard in manifest.shards():
        for name, size in ((shard.file, shard.bytes), (shard.index_file, shard.index_bytes)):
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
    return [
        f"{field.name} {getattr(old, field.name)} -> {getattr(new, field.name)}"
        for field in fields(ShardSettings)
        if getattr(old, field.name) != getattr(new, field.name)
    ]


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
