"""Pieces for programs: what the flags of launch/generate.py say, as arguments of a function."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meloformer.bridge.base_folder import find_player
from meloformer.errors import GenerationError, MeloFormerError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.file_editing import EditConfig, edited, read_to_edit
from meloformer.generation.generate import generate_batch, samples_of
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import TextConfig, orders_of
from meloformer.midi.piece import Piece
from meloformer.midi.render import to_piece
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import Weights, load_model, model_fingerprint
from meloformer.tokens.hid import decode


def generate(
    checkpoint: str | Path | None = None,
    *,
    weights: Weights = "raw",
    seed: int = 0,
    device: DeviceName = "auto",
    **wishes: Any,
) -> Piece:
    """Write a piece: load a model, sample under the grammar, give the music.

    Args:
        checkpoint: run folder, step folder or model folder; the newest of runs/ if not
            given, and the model in the box where there is none.
        weights: those of the last step, or their moving average.
        seed: the same seed gives the same piece on the same device.
        device: where the model runs.
        wishes: as the flags of launch/generate.py, such as `bars=8, tempo=120, key="C major",
            temperature=0.9`, or `text="calm piano", bridge="runs/<bridge>"`, or
            `fill_midi="song.mid", fill_bars="4-7"`.

    Raises:
        MeloFormerError: no such model, or a wish that cannot be fulfilled.
    """
    folder, _ = find_player(None if checkpoint is None else Path(checkpoint), weights)
    controls, sampling, steering, edits = split_wishes(
        wishes, ControlConfig, SamplingConfig, TextConfig, EditConfig
    )
    edits.check_wishes(controls, steering)
    model = load_model(folder, choose_device(device))
    if edits.is_given:
        say = logging.getLogger(__name__).warning
        flag, path = edits.file
        given = read_to_edit(flag, path, say)
        return to_piece(edited(model, given, edits, controls, sampling, seed=seed, say=say))
    print_of = model_fingerprint(folder) if steering.is_given else ""
    orders = orders_of(steering, controls, model, print_of, num_samples=1, seed=seed)
    if len(orders) > 1:
        raise GenerationError(
            f"{len(orders)} texts: allowed: one, or sections of one piece, such as "
            '["0-7: calm", "8-15: loud"]'
        )
    (order,) = orders
    samples = samples_of(order.controls, order.told, order.injection, num_samples=1, seed=seed)
    (ids,) = generate_batch(model, samples, sampling)
    return to_piece(decode(ids))


def sample_pieces(
    model: MuseFormer, *, count: int = 1, seed: int = 0, **wishes: Any
) -> list[Piece]:
    """Sample pieces of one kind side by side.

    Args:
        model: in evaluation mode.
        count: how many.
        seed: of the first; more of them leave it as it is.
        wishes: fields of `ControlConfig` and of `SamplingConfig`.

    Raises:
        GenerationError: an unknown wish, or one that cannot be fulfilled.
    """
    controls, sampling = split_wishes(wishes, ControlConfig, SamplingConfig)
    if count < 1:
        raise GenerationError(f"{count} pieces: allowed are 1 and above")
    samples = samples_of(controls, num_samples=count, seed=seed)
    return [to_piece(decode(ids)) for ids in generate_batch(model, samples, sampling)]


def split_wishes(wishes: dict[str, Any], *kinds: Callable[..., Any]) -> list[Any]:
    """One object of each kind from arguments by name, as the command line does with flags.

    Args:
        wishes: values by name of a field; strings serve as paths, one word as a list of one.
        kinds: dataclasses whose fields are told apart by name; dataclasses inside them as well.

    Raises:
        GenerationError: a name that none of them has.

    >>> controls, sampling = split_wishes({"bars": 2, "top_k": 5}, ControlConfig, SamplingConfig)
    >>> controls.bars, sampling.top_k
    (2, 5)
    """
    left = dict(wishes)
    made = [_made(kind, left) for kind in kinds]
    if left:
        allowed = sorted({name for kind in kinds for name in _names(kind)})
        raise GenerationError(f"found {', '.join(left)}; allowed: {', '.join(allowed)}")
    return made


def _made(kind: Callable[..., Any], left: dict[str, Any]) -> Any:
    given: dict[str, Any] = {}
    for field in _fields(kind):
        if nested := _nested(field):
            given[field.name] = _made(nested, left)
        elif field.name in left:
            given[field.name] = _fitted(left.pop(field.name), field)
    try:
        return kind(**given)
    except MeloFormerError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise GenerationError(f"{given}: cannot be read ({error})") from error


def _fields(kind: Callable[..., Any]) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type]


def _nested(field: dataclasses.Field) -> Callable[..., Any] | None:
    """The dataclass that a field holds, if it holds one."""
    made = field.default_factory
    return made if callable(made) and dataclasses.is_dataclass(made) else None


def _names(kind: Callable[..., Any]) -> Iterator[str]:
    for field in _fields(kind):
        nested = _nested(field)
        yield from _names(nested) if nested else [field.name]


def _fitted(value: Any, field: dataclasses.Field) -> Any:
    """Lists as the tuples that frozen settings hold, and words as paths where paths are wanted."""
    if isinstance(field.default, tuple):
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        value = tuple(Path(item) if _wants_path(field) else str(item) for item in several)
    elif _wants_path(field) and isinstance(value, str):
        value = Path(value)
    return value


def _wants_path(field: dataclasses.Field) -> bool:
    return "Path" in str(field.type)
