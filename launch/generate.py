"""Sample pieces from a trained MuseFormer and write each as MIDI and as a piano-roll picture.

python launch/generate.py --checkpoint runs/<name> --output out.mid --bars 16 --seed 0

python launch/generate.py --checkpoint runs/<name> --weights ema --output out.mid

python launch/generate.py --tempo 120 --time_signature 4/4 --key "C major" --instruments 40 41 42

python launch/generate.py --bridge runs/<bridge> --text "a fast piece in E minor"

python launch/generate.py --bridge runs/<bridge> --text "0-15: calm piano" --text "16-47: rock band"

python launch/generate.py --checkpoint runs/<name> --mix a.mid b.mid --at 0:0,64:1
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from meloformer.command_line import run_recipe
from meloformer.errors import GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import beyond_training, generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import Order, TextConfig, orders_of
from meloformer.midi.piano_roll import save_piano_roll
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import (
    Weights,
    find_model_folder,
    load_model,
    model_fingerprint,
    model_metadata,
    newest_run,
)
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import check_fingerprint

console = Console()


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Flags of launch/generate.py.

    Args:
        checkpoint: run folder, step folder or model folder; the newest run if not given.
        weights: those of the last step, or the moving average of a run trained with --ema.
        output: the MIDI file; several samples are numbered. The picture takes the same name.
        num_samples: pieces, of each text; sampled as one batch.
        seed: the same seed gives the same pieces on the same device.
        device: where the model runs.
        controls: wishes for the piece.
        steering: texts, or pieces that lend their summaries.
        sampling: how bold the choice of a token is.
    """

    checkpoint: Path | None = None
    weights: Weights = "raw"
    output: Path = Path("out.mid")
    num_samples: int = 1
    seed: int = 0
    device: DeviceName = "auto"
    controls: ControlConfig = field(default_factory=ControlConfig)
    steering: TextConfig = field(default_factory=TextConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise GenerationError(f"--num_samples {self.num_samples}: allowed are 1 and above")
        if self.output.is_dir():
            raise GenerationError(f"--output {self.output}: found a folder, allowed a file name")
        if self.output.suffix.lower() not in (".mid", ".midi"):
            raise GenerationError(f"--output {self.output}: allowed are names that end in .mid")


def main(config: GenerateConfig) -> None:
    """Load, sample, decode, write."""
    folder = find_model_folder(config.checkpoint or newest_run(), config.weights)
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerationError(f"--output {config.output}: cannot be written ({error})") from error
    check_fingerprint(model_metadata(folder).get("tokenizer", "none"), str(folder))
    model = load_model(folder, choose_device(config.device))
    orders = orders_of(
        config.steering,
        config.controls,
        model,
        model_fingerprint(folder) if config.steering.bridge else "",
        num_samples=config.num_samples,
        seed=config.seed,
    )
    started = time.perf_counter()
    paths = numbered(config.output, len(orders) * config.num_samples)
    num_tokens = sum(write_order(config, model, order, paths) for order in orders)
    elapsed_seconds = time.perf_counter() - started
    console.print(f"{num_tokens / elapsed_seconds:.0f} tokens/s, {elapsed_seconds:.1f} s in all")


def numbered(path: Path, count: int) -> Iterator[Path]:
    """Names of so many files: the one that was asked for, or that with numbers."""
    digits = len(str(count - 1))
    for index in range(count):
        yield path.with_stem(f"{path.stem}-{index:0{digits}}") if count > 1 else path


def write_order(
    config: GenerateConfig, model: MuseFormer, order: Order, paths: Iterator[Path]
) -> int:
    """Sample the pieces of an order and write each; the number of their tokens."""
    if length_warning := beyond_training(model.config, order.controls.num_bars):
        console.print(length_warning)
    console.print(f"{order.title}: {order.controls.describe()}, {config.num_samples} to sample")
    columns = (TextColumn("{task.completed} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("sampling", total=None)
        pieces = generate(
            model,
            order.controls,
            config.sampling,
            num_samples=config.num_samples,
            seed=config.seed,
            injection=order.injection,
            told=order.told,
            on_token=lambda count: progress.update(task, completed=count),
        )
    for ids, midi_path in zip(pieces, paths, strict=False):
        piece = decode(ids)
        write_midi(to_piece(piece), midi_path)
        save_piano_roll(piece, midi_path.with_suffix(".png"), title=order.title)
        console.print(
            f"{midi_path} and .png: {piece.num_bars} bars, {piece.num_notes} notes, "
            f"{len(ids)} tokens"
        )
    return sum(map(len, pieces))


if __name__ == "__main__":
    run_recipe(main, GenerateConfig)
