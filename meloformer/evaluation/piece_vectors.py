"""One vector a piece: the mean over its bars of the summaries after the injection layer."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from meloformer.bridge.summarising import summaries_of_piece
from meloformer.errors import ConfigError, MidiError, TokenError
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.museformer import MuseFormer
from meloformer.plurals import counted
from meloformer.tokens.hid import encode
from meloformer.tokens.windows import bar_starts

VECTOR_SUFFIXES = (".json", ".npy")


@dataclass(frozen=True, eq=False, kw_only=True)
class PieceVector:
    """What a model makes of a piece.

    Args:
        vector: (D,) float32, not normalised and not centred.
        file: name of the MIDI file.
        sha256: of the file.
        num_bars: that the mean is over.
        layer: after which the summaries were taken, counted from 1.
        model: fingerprint of the weights; vectors of other weights lie in another space.
    """

    vector: np.ndarray
    file: str
    sha256: str
    num_bars: int
    layer: int
    model: str

    def facts(self) -> dict[str, str | int]:
        """Everything but the numbers."""
        facts = asdict(self)
        del facts["vector"]
        return facts | {"width": len(self.vector)}


def check_has_layer(model: MuseFormer) -> None:
    """Refuse a model that has no summaries to take.

    Raises:
        ConfigError: no summaries, or too few layers.
    """
    config = model.config
    if not config.summaries or config.num_layers <= INJECTION_LAYER:
        has = counted(config.num_layers, "layer") if config.summaries else "no summaries"
        raise ConfigError(
            f"--checkpoint: found a model with {has}; allowed: one with summaries and more than "
            f"{INJECTION_LAYER} layers, after which they are taken"
        )


def vector_of_ids(model: MuseFormer, ids: np.ndarray) -> np.ndarray:
    """(D,) float32: bars that several windows hold are joined, then all bars count alike.

    Args:
        model: in evaluation mode; see `check_has_layer`.
        ids: (T,) a whole piece, BOS to EOS; its prefix is not read.

    Raises:
        ConfigError: a bar is longer than a row of the model.
    """
    mean: np.ndarray = summaries_of_piece(model, ids).double().mean(0).float().numpy()
    return mean


def vector_of_asked(model: MuseFormer, fingerprint: str, path: Path) -> PieceVector:
    """The vector of the one file that a user names; see `vector_of_file`.

    Raises:
        ConfigError: it cannot be read, or does not fit the model.
    """
    try:
        return vector_of_file(model, fingerprint, path)
    except MidiError as error:
        raise ConfigError(f"{path.name}: {error}; allowed: a MIDI file with notes") from error


def vector_of_file(model: MuseFormer, fingerprint: str, path: Path) -> PieceVector:
    """The vector of a MIDI file.

    Args:
        model: in evaluation mode; see `check_has_layer`.
        fingerprint: of its weights.
        path: of the file.

    Raises:
        MidiError: the file cannot be read, or a bar of it does not fit the model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MidiError("unreadable", f"{path}: {error.strerror}") from error
    try:
        ids = encode(quantise(read_midi(data)))
        vector = vector_of_ids(model, ids)
    except (TokenError, ConfigError) as error:
        raise MidiError("does_not_fit", str(error)) from error
    return PieceVector(
        vector=vector,
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        num_bars=len(bar_starts(ids)) - 1,
        layer=INJECTION_LAYER,
        model=fingerprint,
    )


def save_vector(found: PieceVector, output: Path) -> list[Path]:
    """Write a vector as JSON, or as .npy with its facts in a .json beside it.

    Args:
        found: the vector.
        output: its suffix says how; see `check_vector_file`.

    Returns:
        The files written.

    Raises:
        ConfigError: they cannot be written.
    """
    facts = found.facts()
    files = _files_of(output)
    try:
        if len(files) > 1:
            with output.open("wb") as file:  # by its name, numpy would add a second suffix to .NPY
                np.save(file, found.vector)
        else:
            facts = {**facts, "vector": found.vector.tolist()}
        files[-1].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error})") from error
    return files


def check_overwrites_vectors_alone(output: Path) -> None:
    """Refuse names of files that are there and hold no vector: they are somebody's own.

    Args:
        output: see `check_vector_file`.

    Raises:
        ConfigError: such a file.
    """
    there = [path for path in _files_of(output) if path.exists()]
    # The facts stand in the last one, also where they are beside the vector.
    if there and not _holds_facts(facts_file := _files_of(output)[-1]):
        found = facts_file if facts_file in there else there[0]
        raise ConfigError(
            f"--output {output}: found {found.name}, which is no vector of this recipe; nothing "
            "was written; move it away, or give another --output"
        )


def _holds_facts(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    names = {field.name for field in fields(PieceVector)} - {"vector"}
    return isinstance(found, dict) and names <= set(found)


def _files_of(output: Path) -> list[Path]:
    """The vector's, and last the one that holds its facts."""
    is_json = output.suffix.lower() == ".json"
    return [output] if is_json else [output, output.with_suffix(".json")]


def check_vector_file(output: Path) -> None:
    """Refuse a name that does not say how a vector is written.

    Raises:
        ConfigError: another suffix.
    """
    if output.suffix.lower() not in VECTOR_SUFFIXES:
        raise ConfigError(
            f"--output {output}: allowed are names that end in {' or '.join(VECTOR_SUFFIXES)}"
        )
