"""Text states on disk: what an encoder says of a set of texts, computed once.

manifest.json             the encoder, its fingerprint, and a sum for every file
texts.jsonl               one object per text, in order
states-00000.safetensors  `states` (tokens, W) of some texts one after the other, `offsets` (N + 1),
                          `pooled` (N, W)

A folder takes its name when all is there. A killed run leaves what it has finished beside it, and
the same command goes on behind that.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from meloformer.bridge.text_encoder import TextEncoder, TextStates
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.model.tensor_file import write_tensors
from meloformer.shards.notes import read_note, sync_folder, write_note

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TEXTS_NAME = "texts.jsonl"
_NOTES = "notes"
_TEXTS_PER_SHARD = 2048
# What of an encoder's facts decides the bytes of its states.
_ENCODER_KEYS = ("fingerprint", "dtype")


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A text, and the window of a piece that it describes.

    Args:
        text: the sentence.
        language: `en` or `zh`; None where nobody has said.
        split: of the window; None, as the following, for a text of no window.
        key: of its piece.
        first_bar: of the window.
        last_bar: behind the window's last bar.
    """

    text: str
    language: str | None = None
    split: str | None = None
    key: str | None = None
    first_bar: int | None = None
    last_bar: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def write_states(
    encoder: TextEncoder,
    texts: Iterable[EncodedText | str],
    folder: Path,
    *,
    captions_sha256: str | None = None,
    texts_per_shard: int = _TEXTS_PER_SHARD,
    tell: Callable[[int], None] = lambda done: None,
) -> "TextStatesFolder":
    """Encode texts into a folder; no more than one file of states is held in memory.

    Args:
        encoder: whose states they are.
        texts: in the order of the folder.
        folder: made here; absent or empty before.
        captions_sha256: of the file that the texts come from; that of the texts if not given.
        texts_per_shard: texts of a file of states.
        tell: called with the number of texts done, now and then.

    Raises:
        ConfigError: the folder is taken, another process writes it, or a text is refused.
        OSError: the disk is full, or the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: found something there already; allowed: a new folder for the text states"
        )
    with _building(folder, encoder) as building:
        manifest = _write_files(encoder, iter(texts), building, texts_per_shard, tell)
        manifest["captions_sha256"] = captions_sha256 or sha256_of(building / TEXTS_NAME)
        shutil.rmtree(building / _NOTES)
        write_note(building / MANIFEST_NAME, manifest)
        building.rename(folder)  # an empty folder gives way
        sync_folder(folder.parent)
    return TextStatesFolder.open(folder)


def find_or_write_states(
    encoder: TextEncoder,
    texts: Callable[[], Iterable[EncodedText | str]],
    folder: Path,
    *,
    captions_sha256: str,
    tell: Callable[[int], None] = lambda done: None,
) -> "TextStatesFolder":
    """The states of a caption set: those that lie in the folder, else written now.

    Args:
        encoder: whose states they are to be.
        texts: gives the texts; called only where they have to be encoded.
        folder: where the states lie, or will.
        captions_sha256: of the file that the texts come from.
        tell: see `write_states`.

    Raises:
        ConfigError: the folder holds something else, or see `write_states`.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return write_states(encoder, texts(), folder, captions_sha256=captions_sha256, tell=tell)
    states = TextStatesFolder.open(folder, encoder_fingerprint=encoder.fingerprint)
    if states.captions_sha256 != captions_sha256:
        raise ConfigError(
            f"{folder}: found states of other captions ({states.captions_sha256[:12]}), expected "
            f"those of {captions_sha256[:12]}; give another folder, or remove this one"
        )
    return states


class TextStatesFolder:
    """States on disk, read a few texts at a time; may be handed to data workers.

    Args:
        path: the folder.
        manifest: read and checked; see `open`.
        texts: in order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], texts: list[EncodedText]) -> None:
        self.path, self.texts = path, texts
        self.encoder: dict[str, Any] = manifest["encoder"]
        self.captions_sha256: str = manifest["captions_sha256"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._edges = np.concatenate([[0], np.cumsum([shard["texts"] for shard in self._shards])])
        self._files: dict[int, Any] = {}

    @classmethod
    def open(cls, path: Path, *, encoder_fingerprint: str | None = None) -> "TextStatesFolder":
        """Open a folder that is whole.

        Args:
            path: the folder.
            encoder_fingerprint: whose states they have to be; any encoder's if not given.

        Raises:
            ConfigError: it is absent, unfinished, damaged, or of another encoder.
        """
        manifest = _read_manifest(path)
        encoder = manifest["encoder"]
        if encoder_fingerprint not in (None, encoder["fingerprint"]):
            raise ConfigError(
                f"{path}: found states of the text encoder {encoder['name']} "
                f"({encoder['fingerprint'][:12]}), expected those of the fingerprint "
                f"{str(encoder_fingerprint)[:12]}; encode the texts again into another folder, or "
                f"give --text_encoder {encoder['name']}"
            )
        try:
            # Not splitlines: it also parts a text at signs that JSON leaves as they are.
            lines = (path / TEXTS_NAME).read_text(encoding="utf-8").split("\n")
            texts = [EncodedText(**json.loads(line)) for line in lines if line]
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path / TEXTS_NAME, str(error)) from error
        if len(texts) != manifest["num_texts"]:
            raise _damaged(
                path / TEXTS_NAME, f"{len(texts)} texts, expected {manifest['num_texts']}"
            )
        return cls(path, manifest, texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    @property
    def width(self) -> int:
        """W of the states."""
        return int(self.encoder["width"])

    def windows(self) -> dict[tuple[str, str, int, int], list[int]]:
        """Indices of the texts of each window, by (split, key, first bar, last bar)."""
        found: dict[tuple[str, str, int, int], list[int]] = {}
        for index, text in enumerate(self.texts):
            match text:
                case EncodedText(split=str(s), key=str(k), first_bar=int(f), last_bar=int(l)):
                    found.setdefault((s, k, f, l), []).append(index)
        return found

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each text.

        Raises:
            ConfigError: a file has been damaged since.
        """
        return np.concatenate(
            [np.diff(self._file(number)[2]) for number in range(len(self._shards))]
        )

    def batch(self, indices: Sequence[int]) -> TextStates:
        """States of texts, on the CPU, in the dtype in which they were stored.

        Raises:
            ConfigError: a file has been damaged since.
        """
        return TextStates.of_rows([self._row(index) for index in indices])

    def verify(self) -> None:
        """Compare every file with its sum.

        Raises:
            ConfigError: one differs.
        """
        for shard in self._shards:
            found = sha256_of(self.path / shard["file"])
            if found != shard["sha256"]:
                raise _damaged(
                    self.path / shard["file"], f"sum {found[:12]}, expected {shard['sha256'][:12]}"
                )

    def _row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        number = int(np.searchsorted(self._edges, index, side="right")) - 1
        within = index - int(self._edges[number])
        states, pooled, offsets, _ = self._file(number)
        try:
            # Copies: what comes from the file is a view of all that stands there.
            states_LW = states[offsets[within] : offsets[within + 1]].clone()
            return states_LW, pooled[within : within + 1][0].clone()
        except (OSError, SafetensorError, IndexError) as error:
            raise _damaged(self._path_of(number), str(error)) from error

    def _path_of(self, number: int) -> Path:
        return self.path / self._shards[number]["file"]

    def _file(self, number: int) -> tuple[Any, Any, list[int], Any]:
        """States, pooled vectors and offsets of a file of states, and the file; opened once."""
        if number not in self._files:
            try:
                file = safe_open(self._path_of(number), framework="pt")
                self._files[number] = (
                    file.get_slice("states"),
                    file.get_slice("pooled"),
                    file.get_tensor("offsets").tolist(),
                    file,
                )
            except (OSError, SafetensorError) as error:
                raise _damaged(self._path_of(number), str(error)) from error
        return self._files[number]


def _write_files(
    encoder: TextEncoder,
    texts: Iterator[EncodedText | str],
    building: Path,
    texts_per_shard: int,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """All but the manifest, which is returned."""
    shards: list[dict[str, Any]] = []
    num_texts = 0
    with (building / TEXTS_NAME).open("w", encoding="utf-8") as file:
        while some := list(islice(texts, texts_per_shard)):
            chunk = [EncodedText(text=text) if isinstance(text, str) else text for text in some]
            lines = "".join(f"{json.dumps(t.to_json(), ensure_ascii=False)}\n" for t in chunk)
            file.write(lines)
            behind = partial(_tell_behind, num_texts, tell)
            shards.append(_write_shard(encoder, chunk, lines, building, len(shards), behind))
            num_texts += len(chunk)
    if not shards:
        raise ConfigError("found no text to encode; allowed: one or more")
    for path in building.glob("states-*.safetensors"):  # of a longer set that was killed
        if path.name not in {shard["file"] for shard in shards}:
            path.unlink()
    return {
        "format": FORMAT_VERSION,
        "encoder": encoder.facts(),
        "num_texts": num_texts,
        "shards": shards,
    }


def _tell_behind(num_before: int, tell: Callable[[int], None], done: int) -> None:
    tell(num_before + done)


def _write_shard(
    encoder: TextEncoder,
    chunk: Sequence[EncodedText],
    lines: str,
    building: Path,
    number: int,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """A file of states, unless a killed run has written it for the same texts."""
    path = building / f"states-{number:05d}.safetensors"
    note_path = building / _NOTES / f"{path.stem}.json"
    lines_sha256 = hashlib.sha256(lines.encode()).hexdigest()
    note = read_note(note_path)
    is_written = note is not None and note["lines_sha256"] == lines_sha256 and path.is_file()
    if is_written and sha256_of(path) == note["shard"]["sha256"]:
        tell(len(chunk))
        return note["shard"]
    rows = encoder.encode_each([text.text for text in chunk], tell)
    lengths = [len(states_LW) for states_LW, _ in rows]
    size = write_tensors(
        path,
        {
            "states": torch.cat([states_LW for states_LW, _ in rows]).cpu(),
            "offsets": torch.tensor([0, *np.cumsum(lengths).tolist()]),
            "pooled": torch.stack([pooled_W for _, pooled_W in rows]).cpu(),
        },
        {"format": "pt"},
    )
    shard = {"file": path.name, **size.to_json(), "texts": len(chunk)}
    write_note(note_path, {"lines_sha256": lines_sha256, "shard": shard})
    return shard


@contextmanager
def _building(folder: Path, encoder: TextEncoder) -> Iterator[Path]:
    """The folder to write into, held by this process alone; what another encoder left goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.parent / f".{folder.name}.building"
    lock_path = folder.parent / f".{folder.name}.building.lock"
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder}: another process is writing these states; wait for it, or give another "
                "folder"
            ) from error
        facts = {key: encoder.facts()[key] for key in _ENCODER_KEYS}
        if building.exists() and read_note(building / _NOTES / "encoder.json") != facts:
            shutil.rmtree(building)
        (building / _NOTES).mkdir(parents=True, exist_ok=True)
        write_note(building / _NOTES / "encoder.json", facts)
        yield building
        lock_path.unlink()


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        found = f"found no {MANIFEST_NAME}" if path.is_dir() else "no such folder"
        raise ConfigError(f"{path}: {found}; expected text states that are finished")
    manifest = read_note(manifest_path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        said = manifest.get("format") if isinstance(manifest, dict) else "no JSON object"
        raise ConfigError(
            f"{manifest_path}: found format {said!r}, expected {FORMAT_VERSION}; encode the texts "
            "again"
        )
    try:
        sizes = {shard["file"]: shard["bytes"] for shard in manifest["shards"]}
        is_known = bool(manifest["encoder"]["fingerprint"] and manifest["captions_sha256"])
        num_texts = sum(shard["texts"] for shard in manifest["shards"])
    except (KeyError, TypeError) as error:
        raise _damaged(manifest_path, f"no {error}") from error
    if not is_known or num_texts != manifest["num_texts"]:
        raise _damaged(manifest_path, f"{num_texts} texts in its files")
    for name, size in sizes.items():
        found_bytes = (path / name).stat().st_size if (path / name).is_file() else 0
        if found_bytes != size:
            raise _damaged(path / name, f"{found_bytes} of {size} bytes")
    return manifest


def _damaged(path: Path, found: str) -> ConfigError:
    return ConfigError(f"{path}: damaged, found {found}; remove the folder and encode again")
