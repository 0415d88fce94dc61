"""From a clone to something to hear and to see: a piece, its sound and its picture.

make listen

python launch/tools/listen.py --seed 3 --bars 32 --instruments 40 41 42 --output out.mid

python launch/tools/listen.py --checkpoint runs/<name>

The model in the box writes the piece, so nothing is trained and nothing is downloaded.
"""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from meloformer.command_line import check_at_least, run_recipe
from meloformer.evaluation.recipes import run
from meloformer.model.box import boxed_model, describe_boxed_model


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Flags of launch/tools/listen.py.

    Args:
        checkpoint: run, step or model folder that writes; the model in the box if not given.
        output: the MIDI file; sound and picture take the same name.
        bars: of the piece.
        instruments: that play, MIDI programs and drums; those that the model chooses if none.
        seed: of the piece.
        setup_seconds: what setting up took before, to be told apart from the rest.
    """

    checkpoint: Path | None = None
    output: Path = Path("out.mid")
    bars: int = 16
    instruments: tuple[str, ...] = ("drums", "29", "30", "33")
    seed: int = 0
    setup_seconds: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, {"bars": 1})


def main(config: ListenConfig) -> None:
    """Write the piece, say where the files are and what they took."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    began = time.monotonic()
    checkpoint = config.checkpoint
    if checkpoint is None:
        checkpoint = boxed_model()
        console.print(describe_boxed_model())
    # Not everywhere is there a wheel of the instruments.
    voice = "instruments" if importlib.util.find_spec("libsonare") else "plain"
    run(
        *("generate.py", "--checkpoint", checkpoint, "--output", config.output),
        *("--bars", config.bars, "--seed", config.seed, "--audio", "--voice", voice),
        *(("--instruments", *config.instruments) if config.instruments else ()),
    )
    files = [config.output, *map(config.output.with_suffix, (".wav", ".png"))]
    console.print(f"to hear and to see: {', '.join(map(str, files))}", markup=False)
    if config.setup_seconds is not None:
        console.print(f"set-up, downloads included: {config.setup_seconds} s")
    console.print(f"the piece, its sound and its picture: {time.monotonic() - began:.0f} s")
    console.print("next: `make page` opens the same model in the browser")


if __name__ == "__main__":
    run_recipe(main, ListenConfig)
