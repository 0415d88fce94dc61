"""Sample pieces from a trained MuseFormer, or go on with given ones: MIDI, picture, sound if asked.

python launch/generate.py --checkpoint runs/<name> --output out.mid --bars 16 --seed 0

python launch/generate.py --checkpoint runs/<name> --weights ema --output out.mid

python launch/generate.py --audio --soundfont <bank>.sf2 --no_piano_roll

python launch/generate.py --tempo 120 --time_signature 4/4 --key "C major" --instruments 40 41 42

python launch/generate.py --checkpoint runs/<name> --bars 2000 --endless

torchrun --standalone --nproc_per_node 8 launch/generate.py --num_samples 10000 --no_piano_roll

python launch/generate.py --device cpu --weights_dtype int8

python launch/generate.py --bridge runs/<bridge> --text "a fast piece in E minor"

python launch/generate.py --bridge runs/<bridge> --text "0-15: calm piano" --text "16-47: rock band"

python launch/generate.py --bridge runs/<bridge> --text "calm piano" --strategy adapter
--adapter runs/<adapter>

python launch/generate.py --checkpoint runs/<name> --mix a.mid b.mid --at 0:0,64:1

python launch/generate.py --continue_midi song.mid --from_bar 8 --bars 16

python launch/generate.py --fill_midi song.mid --fill_bars 4-7

python launch/generate.py --accompany_midi song.mid --instruments 33 drums
"""

from dataclasses import dataclass, field

from meloformer.command_line import run_recipe
from meloformer.generation.file_editing import EditConfig, write_edits
from meloformer.generation.text import TextConfig, orders_of
from meloformer.generation.writing import (
    WritingConfig,
    how_to_get_a_band,
    load_writer,
    write_orders,
)
from meloformer.model.weights import model_fingerprint


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Flags of launch/generate.py.

    Args:
        writing: which model writes, how, how much and where to.
        steering: texts, or pieces that lend their summaries.
        editing: a piece that is continued, filled or accompanied instead.

    Raises:
        GenerationError: wishes that do not go together, or a file that would be written over
            itself.
    """

    writing: WritingConfig = field(default_factory=WritingConfig)
    steering: TextConfig = field(default_factory=TextConfig)
    editing: EditConfig = field(default_factory=EditConfig)

    def __post_init__(self) -> None:
        self.editing.check_wishes(self.writing.controls, self.steering)
        self.writing.check_spares(self.editing.files | self.steering.files)


def main(config: GenerateConfig) -> None:
    """Load, sample, decode, write."""
    writing = config.writing
    model, folder = load_writer(writing)
    if config.editing.is_given:
        write_edits(writing, config.editing, model)
        return
    if not config.steering.is_given and (line := how_to_get_a_band(writing, folder)):
        print(line)
    orders = orders_of(
        config.steering,
        writing.controls,
        model,
        model_fingerprint(folder) if config.steering.is_given else "",
        num_samples=writing.num_samples,
        seed=writing.seed,
    )
    write_orders(writing, model, orders)


if __name__ == "__main__":
    run_recipe(main, GenerateConfig)
