"""Writing targets: file by file into a folder of its own, which takes its name when all is there.

A killed extraction leaves finished files and a note of each: the same command goes on behind them,
another command begins anew. Nothing of two models or settings can meet in one folder.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meloformer.bridge.moments import Moments
from meloformer.bridge.targets import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    STATISTICS_NAME,
    WINDOWS_NAME,
    TargetWindow,
)
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.model.tensor_file import FileSum, write_tensors
from meloformer.shards.manifest import SPLITS
from meloformer.shards.notes import read_note, sync_folder, write_note

_WORK = "work"
_NOTE = "extraction.json"


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """What is known of a finished file of summaries.

    Args:
        file: relative to the folder.
        size: bytes and sum.
        windows: how many windows it holds.
        skipped_bars: bars between them that no window holds.
        moments: of its summaries as they are stored.
        rounding_D: sums of squares of what float16 took away.
    """

    file: str
    size: FileSum
    windows: int
    skipped_bars: int
    moments: Moments
    rounding_D: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain data that keeps every bit."""
        return {
            "file": self.file,
            "size": self.size.to_json(),
            "windows": self.windows,
            "skipped_bars": self.skipped_bars,
            "moments": self.moments.to_json(),
            "rounding": self.rounding_D.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardNote":
        """The inverse of `to_json`."""
        return cls(
            file=values["file"],
            size=FileSum(**values["size"]),
            windows=values["windows"],
            skipped_bars=values["skipped_bars"],
            moments=Moments.from_json(values["moments"]),
            rounding_D=np.array(values["rounding"]),
        )


class TargetsWriter:
    """An extraction that is under way; made by `writing_targets`.

    Args:
        output: what the folder becomes.
        folder: where it is written.
        settings: the part of the manifest that says what is extracted.
    """

    def __init__(self, output: Path, folder: Path, settings: dict[str, Any]) -> None:
        self.output, self.folder, self.settings = output, folder, settings
        self._work = folder / _WORK
        self._notes: dict[str, list[ShardNote]] = {split: [] for split in SPLITS}

    def finished(self, split: str) -> ShardNote | None:
        """Take up the next file of a split, if a killed extraction had finished it."""
        number = len(self._notes[split])
        found = read_note(self._work / f"{split}-{number:05d}.json")
        if found is None:
            return None
        note = ShardNote.from_json(found)
        path = self.folder / note.file
        is_whole = path.is_file() and path.stat().st_size == note.size.bytes
        if not is_whole or sha256_of(path) != note.size.sha256:
            return None
        self._notes[split].append(note)
        return note

    def write(
        self,
        split: str,
        windows: Sequence[TargetWindow],
        summaries: Sequence[Tensor],
        *,
        skipped_bars: int = 0,
    ) -> ShardNote:
        """Write the next file of a split.

        Args:
            split: its name.
            windows: in order.
            summaries: (bars, D) float32 of each.
            skipped_bars: bars of these pieces that no window holds.

        Raises:
            ConfigError: a summary is not finite, or too large for float16.
        """
        number = len(self._notes[split])
        exact_ND = torch.cat(list(summaries))
        check_range(exact_ND, windows)
        stored_ND = exact_ND.to(torch.float16)
        edges = np.concatenate([[0], np.cumsum([len(part) for part in summaries])])
        name = f"{split}/summaries-{number:05d}.safetensors"
        (self.folder / split).mkdir(exist_ok=True)
        size = write_tensors(
            self.folder / name,
            {"summaries": stored_ND, "offsets": torch.from_numpy(edges.astype(np.int64))},
            {"format": "pt"},
        )
        lines = [json.dumps(window._asdict(), ensure_ascii=False) + "\n" for window in windows]
        _write_text(self._work / f"{split}-{number:05d}.jsonl", "".join(lines))
        note = ShardNote(
            file=name,
            size=size,
            windows=len(windows),
            skipped_bars=skipped_bars,
            moments=Moments.of(stored_ND.numpy()),
            rounding_D=(exact_ND.double() - stored_ND.double()).square().sum(0).numpy(),
        )
        sync_folder(self.folder / split)
        # The note last: it never tells of what is not there.
        write_note(self._work / f"{split}-{number:05d}.json", note.to_json())
        self._notes[split].append(note)
        return note

    def finish(self) -> dict[str, Any]:
        """Write statistics, windows and manifest, and give the folder its name.

        Raises:
            ConfigError: train holds no window, so that nothing can be normalised.
        """
        if not self._notes["train"]:
            raise ConfigError(
                "found no window in train, so there is nothing to normalise summaries by; allowed: "
                "shards with pieces in train whose bars fit --max_seq_len"
            )
        train = Moments.joined(note.moments for note in self._notes["train"])
        statistics = {"mean": train.mean_D, "std": train.std}
        files = {
            STATISTICS_NAME: write_tensors(
                self.folder / STATISTICS_NAME,
                {name: torch.from_numpy(x.astype(np.float32)) for name, x in statistics.items()},
                {"format": "pt"},
            )
        }
        splits = {}
        for split, notes in self._notes.items():
            (self.folder / split).mkdir(exist_ok=True)
            parts = [self._work / f"{split}-{number:05d}.jsonl" for number in range(len(notes))]
            path = self.folder / split / WINDOWS_NAME
            _write_text(path, "".join(part.read_text(encoding="utf-8") for part in parts))
            files[f"{split}/{WINDOWS_NAME}"] = FileSum(path.stat().st_size, sha256_of(path))
            files |= {note.file: note.size for note in notes}
            splits[split] = {
                "windows": sum(note.windows for note in notes),
                "bars": sum(note.moments.count for note in notes),
                "skipped_bars": sum(note.skipped_bars for note in notes),
                "shards": [
                    {"file": note.file, "sha256": note.size.sha256, "windows": note.windows}
                    for note in notes
                ],
            }
        rounding_D = sum(note.rounding_D for note in self._notes["train"]) / train.count
        manifest = {
            "format": FORMAT_VERSION,
            **self.settings,
            "splits": splits,
            # Of a bar and a dimension, what float16 takes away, as a share of what bars differ by.
            "worst_rounding_of_std": float((np.sqrt(rounding_D) / train.std).max()),
            "files": {name: size.to_json() for name, size in files.items()},
        }
        write_note(self.folder / MANIFEST_NAME, manifest)
        if self.output.exists():
            self.output.rmdir()
        self.folder.rename(self.output)
        sync_folder(self.output.parent)
        shutil.rmtree(self.output / _WORK)
        (self.output / _NOTE).unlink()
        return manifest


def check_range(summaries_ND: Tensor, windows: Sequence[TargetWindow]) -> None:
    """Refuse what float16 cannot hold.

    Args:
        summaries_ND: float32, of all windows in order.
        windows: whose they are, to name the place.

    Raises:
        ConfigError: not finite, or out of range; the dimension is named.
    """
    largest = torch.finfo(torch.float16).max
    is_wrong_ND = ~(summaries_ND.abs() <= largest)
    if not bool(is_wrong_ND.any()):
        return
    bar, dimension = (int(index) for index in is_wrong_ND.nonzero()[0])
    ends = np.cumsum([window.bars for window in windows])
    number = int(np.searchsorted(ends, bar, side="right"))
    window = windows[number]
    bar_of_piece = window.last_bar - (int(ends[number]) - bar)
    raise ConfigError(
        f"summaries of {window.key} ({window.location}), bar {bar_of_piece + 1}: found "
        f"{float(summaries_ND[bar, dimension]):g} in dimension {dimension} ("
        f"{int(is_wrong_ND.any(0).sum())} such dimensions), allowed finite numbers up to "
        f"{largest:g}, the range of float16; take a model whose training did not diverge"
    )


@contextmanager
def writing_targets(output: Path, settings: dict[str, Any]) -> Iterator[TargetsWriter]:
    """A place to extract into, empty or with what a killed extraction of the same kind left.

    Args:
        output: absent or empty.
        settings: what is extracted, as JSON; only files of equal settings are gone on with.

    Raises:
        ConfigError: something stands at the output, another process writes there, or the disk
            refuses.
    """
    output = output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"--output {output}: found something there already, nothing was written; give another, "
            "or remove it first"
        )
    folder = output.parent / f".{output.name}.extracting"
    settings = json.loads(json.dumps(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, output):
            if read_note(folder / _NOTE) != settings:
                for part in (_WORK, *SPLITS):
                    shutil.rmtree(folder / part, ignore_errors=True)
                (folder / MANIFEST_NAME).unlink(missing_ok=True)
                (folder / _WORK).mkdir()
                write_note(folder / _NOTE, settings)
            try:
                yield TargetsWriter(output, folder, settings)
            except ConfigError:  # the same command would end in the same way
                shutil.rmtree(folder)
                raise
    except OSError as error:
        remedy = "give another --output, which this user may write"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "make room and give the same command, which goes on where this one stopped"
        raise ConfigError(
            f"--output {output}: cannot be written ({error}); nothing opens there: {remedy}"
        ) from error


@contextmanager
def _held(folder: Path, output: Path) -> Iterator[None]:
    """Keep other extractions out; the system lets go when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--output {output}: found another extraction writing there; wait for it, or give "
                "another --output"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
