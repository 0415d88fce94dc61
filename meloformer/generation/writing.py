"""Pieces that were asked for, sampled and written as MIDI, with what stands beside it."""

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from meloformer.bridge.base_folder import find_player
from meloformer.errors import GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.decode_graphs import DecodeGraphs
from meloformer.generation.generate import Sample, beyond_training, generate_batch, samples_of
from meloformer.generation.int8 import use_int8_weights
from meloformer.generation.rendering import RenderingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.sharing import share_of_environment
from meloformer.generation.text import Order
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.box import is_boxed_model
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import Weights, load_model
from meloformer.plurals import counted
from meloformer.tokens.hid import decode

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class _Asked:
    """One piece to be written: what it is to be, what it is called, and its file."""

    sample: Sample
    title: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """Flags of every recipe that writes new pieces.

    Args:
        checkpoint: run folder, step folder or model folder; the newest run if not given, and the
            model in the box where there is none.
        weights: those of the last step, or the moving average of a run trained with --ema.
        output: the MIDI file; several samples are numbered. Picture and sound take the same name.
        num_samples: pieces, of each text.
        batch_size: sampled side by side, the candidates of --best_of counted; processes share out
            whole batches, so that the same pieces come from any number of them.
        endless: pieces longer than a row of training go on from windows of their last half; else
            they are read whole, beyond what the model was trained on.
        skip_existing: leave the files alone that are there, and sample no batch that has all of
            its own; else they are written again.
        seed: the same seed gives the same pieces on the same device.
        device: where the model runs.
        weights_dtype: as they were saved, or rounded to int8: on a CPU faster, and other pieces
            (docs/speed.md).
        compile: decode single tokens by compiled programs, on a GPU as the replay of a graph; it
            pays for many or long pieces, since compiling takes time. See docs/speed.md.
        controls: wishes for the piece.
        sampling: how bold the choice of a token is.
        rendering: what is written beside the MIDI file.
    """

    checkpoint: Path | None = None
    weights: Weights = "raw"
    output: Path = Path("out.mid")
    num_samples: int = 1
    batch_size: int = 64
    endless: bool = False
    skip_existing: bool = False
    seed: int = 0
    device: DeviceName = "auto"
    weights_dtype: Literal["saved", "int8"] = "saved"
    compile: bool = False
    controls: ControlConfig = field(default_factory=ControlConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise GenerationError(f"--num_samples {self.num_samples}: allowed are 1 and above")
        if self.batch_size < 1:
            raise GenerationError(f"--batch_size {self.batch_size}: allowed are 1 and above")
        if not 0 <= self.seed <= _MAX_SEED:
            raise GenerationError(f"--seed {self.seed}: allowed are 0 to {_MAX_SEED}")
        if self.compile and self.weights_dtype == "int8":
            raise GenerationError(
                "--compile with --weights_dtype int8: torch compiles no products of 8 bits here; "
                "allowed: one of the two"
            )
        if self.output.is_dir():
            raise GenerationError(f"--output {self.output}: found a folder, allowed a file name")
        if self.output.suffix.lower() not in (".mid", ".midi"):
            raise GenerationError(f"--output {self.output}: allowed are names that end in .mid")

    def check_spares(self, read: Mapping[str, Sequence[Path]]) -> None:
        """Refuse to write over a file that is read: nobody could have it back.

        Args:
            read: files of each flag that names some.

        Raises:
            GenerationError: names the first.
        """
        for flag, file in [(flag, file) for flag, files in read.items() for file in files]:
            written = numbered(self.output, self.num_samples)
            if file.exists() and any(path.exists() and file.samefile(path) for path in written):
                raise GenerationError(
                    f"--output {self.output} with {flag} {file}: would write over what is read; "
                    "allowed: another name"
                )


def load_writer(config: WritingConfig) -> tuple[MuseFormer, Path]:
    """The model in evaluation mode on its device, and the folder that it comes from.

    Says which it is where nobody named one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        TokenError: it knows another vocabulary.
        ConfigError: weights of 8 bits where the device has none; or the pieces cannot sound as they
            should, which is found before anything is loaded.
    """
    _ = config.rendering.instruments
    folder, which = find_player(config.checkpoint, config.weights)
    share = share_of_environment()
    if which and share.is_first:
        Console(markup=False, soft_wrap=True).print(which)
    model = load_model(folder, share.device(choose_device(config.device)))
    if config.weights_dtype == "int8":
        use_int8_weights(model)
    return model, folder


def how_to_get_a_band(config: WritingConfig, folder: Path) -> str | None:
    """A line to print where the model in the box is asked for nobody in particular.

    Args:
        config: what is wished for.
        folder: of the model.
    """
    controls = config.controls
    is_asked = controls.instruments or controls.enter or controls.num_instruments is not None
    if is_asked or not is_boxed_model(folder) or not share_of_environment().is_first:
        return None
    return "a band instead of what the model chooses: --instruments 29 30 33 drums"


def write_orders(config: WritingConfig, model: MuseFormer, orders: Sequence[Order]) -> None:
    """Sample and write every piece, and say what was written and how fast.

    Of several processes each writes its share, and the first one alone speaks, of its own.

    Args:
        config: where to, how many of each.
        model: in evaluation mode.
        orders: what to write; their files are numbered through.

    Raises:
        GenerationError: a file or its folder cannot be written.
    """
    make_folder(config.output)
    share = share_of_environment()
    # Words of users and names of files are no markup, and a line is whole however long they are.
    console = Console(markup=False, soft_wrap=True, quiet=not share.is_first)
    if taken := config.controls.another_tempo:
        console.print(taken)
    if sounds_like := config.rendering.sounds_like():
        console.print(sounds_like)
    paths = numbered(config.output, len(orders) * config.num_samples)
    asked: list[_Asked] = []
    for order in orders:
        _announce(order, config, model, console)
        samples = samples_of(
            order.controls,
            order.told,
            order.injection,
            num_samples=config.num_samples,
            seed=config.seed,
        )
        asked += map(_Asked, samples, itertools.repeat(order.title), paths)
    # A batch takes as long as its longest piece.
    asked.sort(key=lambda one: one.sample.controls.num_bars)
    at_once = max(1, config.batch_size // config.sampling.best_of)
    batches = [asked[first : first + at_once] for first in range(0, len(asked), at_once)]
    if share.num_processes > 1:
        console.print(share.describe(len(batches)))
    graphs = DecodeGraphs(model) if config.compile else None
    started, num_tokens, sampling_seconds = time.perf_counter(), 0, 0.0
    columns = (TextColumn("{task.description} {task.completed} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(count: int) -> None:
            progress.update(task, completed=count)

        for number in share.of(len(batches)):
            batch, first = batches[number], number * at_once
            missing = {
                one.path for one in batch if not (config.skip_existing and one.path.exists())
            }
            if len(missing) < len(batch):
                console.print(f"{len(batch) - len(missing)} of {len(batch)} files are there")
            if missing:
                pieces = f"pieces {first + 1}-{first + len(batch)} of {len(asked)}:"
                progress.reset(task, description=pieces)
                before = time.perf_counter()
                samples = [one.sample for one in batch]
                pieces_ids = generate_batch(
                    model,
                    samples,
                    config.sampling,
                    endless=config.endless,
                    graphs=graphs,
                    on_token=tell,
                )
                sampling_seconds += time.perf_counter() - before
                num_tokens += sum(map(len, pieces_ids))
                for ids, one in zip(pieces_ids, batch, strict=True):
                    if one.path in missing:
                        _write(ids, one, config.rendering, console)
    seconds = time.perf_counter() - started
    # A process without a batch has sampled for no time.
    rate = num_tokens / sampling_seconds if num_tokens else 0
    compiled = f", {graphs.num_compiled} graphs compiled" if graphs is not None else ""
    console.print(f"{share.name}{rate:.0f} tokens/s, {seconds:.1f} s in all{compiled}")


def make_folder(output: Path) -> None:
    """Make the folder of a file that is to be written, before anything is sampled for it.

    Raises:
        GenerationError: it cannot be made, or nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise GenerationError(f"--output {output}: cannot be written ({error})") from error


def numbered(path: Path, count: int) -> Iterator[Path]:
    """Names of so many files: the one that was asked for, or that with numbers.

    >>> [str(name) for name in numbered(Path("a.mid"), 2)]
    ['a-0.mid', 'a-1.mid']
    """
    digits = len(str(count - 1))
    for index in range(count):
        yield path.with_stem(f"{path.stem}-{index:0{digits}}") if count > 1 else path


def _announce(order: Order, config: WritingConfig, model: MuseFormer, console: Console) -> None:
    """Say what will be sampled."""
    length_warning = beyond_training(model.config, order.controls.num_bars)
    if length_warning and not config.endless:
        console.print(length_warning)
    # Titled by its wishes, a piece is not described twice.
    wishes = order.controls.describe()
    described = wishes if order.title == wishes else f"{order.title}: {wishes}"
    console.print(f"{described}, {config.num_samples} to sample")


def _write(ids: np.ndarray, one: _Asked, rendering: RenderingConfig, console: Console) -> None:
    """Write a piece, and say what it is."""
    piece = decode(ids)
    files = write_piece(piece, one.path, rendering, one.title)
    console.print(
        f"{files}: {counted(piece.num_bars, 'bar')}, {counted(piece.num_notes, 'note')}, "
        f"{counted(len(ids), 'token')}"
    )


def write_piece(piece: QuantisedPiece, path: Path, rendering: RenderingConfig, title: str) -> str:
    """Write a piece and what stands beside it; the names of the files, in words.

    A file that has its name is whole, and what stands beside it is there: a restart can tell.

    Raises:
        GenerationError: a file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        beside = rendering.render(piece, path, title)
        write_midi(to_piece(piece), unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise GenerationError(f"{path}: cannot be written ({error})") from error
    return " and ".join([str(path), *(file.suffix for file in beside)])
