"""Targets: a base's summaries of the windows of a shard set, on disk; what bridges are trained on.

A folder that opens is whole: its manifest is the last file that extraction writes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from meloformer.errors import CheckpointError, ShardError
from meloformer.file_sums import sha256_of
from meloformer.shards.maps import Recent

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
STATISTICS_NAME = "statistics.safetensors"
WINDOWS_NAME = "windows.jsonl"

_MOST_OPEN_FILES = 64

_REMEDY = "extract the summaries again with launch/extract_summaries.py"


class TargetWindow(NamedTuple):
    """Bars `first_bar`..`last_bar` - 1 of a piece.

    Args:
        key: of the piece in its shards.
        first_bar: first bar.
        last_bar: one past the last bar.
        location: the file that the piece was made from, as its shards know it.
    """

    key: str
    first_bar: int
    last_bar: int
    location: str

    @property
    def bars(self) -> int:
        """How many."""
        return self.last_bar - self.first_bar


class _Shard(NamedTuple):
    tensors: Any
    offsets: list[int]


class SplitTargets:
    """Windows of one split.

    Args:
        windows: in their order.
        files: safetensors files, in the order of their windows.
        first_window: number of the first window of each file, and at the end N.
        mean_D: of the summaries of train, float32.
        std_D: their deviation.
    """

    def __init__(
        self,
        windows: list[TargetWindow],
        files: list[Path],
        first_window: list[int],
        mean_D: Tensor,
        std_D: Tensor,
    ) -> None:
        self.windows, self.files, self.first_window = windows, files, first_window
        self.mean_D, self.std_D = mean_D, std_D
        self._shards: Recent[_Shard] = Recent(self._open, _MOST_OPEN_FILES)

    def __len__(self) -> int:
        return len(self.windows)

    def summaries(self, number: int) -> Tensor:
        """(bars, D) float32 summaries of a window in the base's own scale."""
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        place = int(np.searchsorted(self.first_window, number, side="right")) - 1
        shard = self._shards[place]
        row = number - self.first_window[place]
        summaries_SD: Tensor = shard.tensors[shard.offsets[row] : shard.offsets[row + 1]]
        if len(summaries_SD) != self.windows[number].bars:
            raise ShardError(
                f"{self.files[place]}: found {len(summaries_SD)} summaries of window {number}, "
                f"expected {self.windows[number].bars}, one a bar; {_REMEDY}"
            )
        return summaries_SD.float()

    def batch(self, indices: Sequence[int], num_bars: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalised summaries (B, S, D) float32, 0 at padding, and a mask (B, S), True at bars.

        Args:
            indices: numbers of windows.
            num_bars: S; that of the longest of these windows if not given.
        """
        found = [self.summaries(index) for index in indices]
        longest = max(map(len, found), default=0)
        slots = longest if num_bars is None else num_bars
        assert slots >= longest, "a window is longer than the batch is asked to be"
        summaries_BSD = torch.zeros(len(found), slots, len(self.mean_D))
        mask_BS = torch.zeros(len(found), slots, dtype=torch.bool)
        for row, summaries_SD in enumerate(found):
            summaries_BSD[row, : len(summaries_SD)] = (summaries_SD - self.mean_D) / self.std_D
            mask_BS[row, : len(summaries_SD)] = True
        return summaries_BSD, mask_BS

    def _open(self, place: int) -> _Shard:
        tensors = _open_tensors(self.files[place])
        return _Shard(tensors.get_slice("summaries"), tensors.get_tensor("offsets").tolist())


@dataclass(frozen=True, eq=False, kw_only=True)
class SummaryTargets:
    """An opened folder of targets.

    Args:
        folder: where it lies.
        manifest: what it says of itself.
        mean: (D,) float32, over the bars of train.
        std: (D,) float32, likewise.
    """

    folder: Path
    manifest: dict[str, Any]
    mean: Tensor
    std: Tensor

    @classmethod
    def open(cls, folder: Path) -> "SummaryTargets":
        """Check names and sizes of all files; `verify` reads them too.

        Raises:
            ShardError: no such folder, an unfinished one, another format, a missing or short file.
        """
        manifest = read_manifest(folder)
        for name, facts in manifest["files"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else "none"
            if found != facts["bytes"]:
                raise ShardError(
                    f"{folder / name}: found {found} bytes, expected {facts['bytes']}; copy the "
                    f"folder again, or {_REMEDY}"
                )
        try:
            statistics = load_file(folder / STATISTICS_NAME)
        except SafetensorError as error:
            raise ShardError(f"{folder / STATISTICS_NAME}: damaged ({error}); {_REMEDY}") from error
        return cls(folder=folder, manifest=manifest, mean=statistics["mean"], std=statistics["std"])

    @property
    def base(self) -> dict[str, Any]:
        """Facts of the model whose summaries these are."""
        base: dict[str, Any] = self.manifest["base"]
        return base

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    def split(self, name: str) -> SplitTargets:
        """Windows of `train`, `valid` or `test`; a split may be empty.

        Raises:
            ShardError: no such split.
        """
        if name not in self.manifest["splits"]:
            raise ShardError(
                f"{self.folder}: found no split {name!r}, allowed "
                f"{', '.join(self.manifest['splits'])}"
            )
        shards = self.manifest["splits"][name]["shards"]
        # Not splitlines: it also parts a line at signs of file names that JSON leaves as they are.
        text = (self.folder / name / WINDOWS_NAME).read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line]
        edges = np.concatenate([[0], np.cumsum([shard["windows"] for shard in shards])])
        if len(lines) != int(edges[-1]):
            raise ShardError(
                f"{self.folder / name / WINDOWS_NAME}: found {len(lines)} windows, expected "
                f"{int(edges[-1])}; {_REMEDY}"
            )
        return SplitTargets(
            windows=[TargetWindow(**json.loads(line)) for line in lines],
            files=[self.folder / shard["file"] for shard in shards],
            first_window=[int(edge) for edge in edges],
            mean_D=self.mean,
            std_D=self.std,
        )

    def check_base(self, fingerprint: str) -> None:
        """Refuse another model than the one whose summaries these are.

        Args:
            fingerprint: `model_fingerprint` of the model at hand.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        if self.base["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{self.folder}: found summaries of the model {self.base['fingerprint'][:12]} "
                f"({self.base['folder']}), expected {fingerprint[:12]}; give that model, or "
                "extract the summaries of this one with launch/extract_summaries.py"
            )

    def verify(self) -> None:
        """Read every byte.

        Raises:
            ShardError: a file is not the one that was written.
        """
        for name, facts in self.manifest["files"].items():
            if (found := sha256_of(self.folder / name)) != facts["sha256"]:
                raise ShardError(
                    f"{self.folder / name}: found sha256 {found[:16]}, expected "
                    f"{facts['sha256'][:16]}; copy the folder again, or {_REMEDY}"
                )

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which holds the sums of all files."""
        return hashlib.sha256((self.folder / MANIFEST_NAME).read_bytes()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of targets.

    Raises:
        ShardError: there is none, or it is of another format.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        found = (
            "an extraction that did not finish, or another folder" if folder.is_dir() else "none"
        )
        raise ShardError(
            f"{folder}: found {found}, expected a folder of summaries with {MANIFEST_NAME}; make "
            "one with launch/extract_summaries.py"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path}: damaged ({error}); {_REMEDY}") from error
    if not isinstance(manifest, dict) or "base" not in manifest or "splits" not in manifest:
        raise ShardError(f"{path}: no manifest of summaries; expected one with base and splits")
    if manifest.get("format") != FORMAT_VERSION:
        raise ShardError(
            f"{path}: found format {manifest.get('format')}, expected {FORMAT_VERSION}; {_REMEDY}"
        )
    return manifest


def _open_tensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
