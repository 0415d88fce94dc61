"""Turn a MIDI file into one vector: the mean over its bars of a model's layer-3 summaries.

    python launch/embed.py song.mid --checkpoint runs/<name> --output song.npy
    python launch/embed.py song.mid --checkpoint runs/<name> --output song.json

JSON holds the vector and its facts (layer, fingerprint of the weights, bars, sum of the file); .npy
holds the vector alone, with the facts in a .json beside it. Vectors of other weights lie in another
space.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from meloformer.bridge.base_folder import find_player
from meloformer.command_line import check_output_file, run_recipe
from meloformer.evaluation.piece_vectors import (
    check_has_layer,
    check_overwrites_vectors_alone,
    check_vector_file,
    save_vector,
    vector_of_asked,
)
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import Weights, load_model, model_fingerprint
from meloformer.plurals import counted


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Flags of launch/embed.py.

    Args:
        midi: the MIDI file.
        output: a .json or .npy file; the MIDI file's name with .json if not given. A vector that is
            there is written again; any other file is left alone.
        checkpoint: run folder, step folder or model folder; the newest run if not given, and the
            model in the box where there is none.
        weights: those of the last step, or the moving average of a run trained with --ema.
        device: where the model runs.
    """

    midi: tyro.conf.Positional[Path]
    output: Path | None = None
    checkpoint: Path | None = None
    weights: Weights = "raw"
    device: DeviceName = "auto"


def main(config: EmbedConfig) -> None:
    """Load, summarise, write."""
    output = config.output or config.midi.with_suffix(".json")
    check_vector_file(output)
    check_output_file("--output", output)
    check_overwrites_vectors_alone(output)
    folder, which = find_player(config.checkpoint, config.weights)
    console = Console(markup=False, soft_wrap=True)
    if which:
        console.print(which)
    model = load_model(folder, choose_device(config.device))
    check_has_layer(model)
    found = vector_of_asked(model, model_fingerprint(folder), config.midi)
    files = " and ".join(map(str, save_vector(found, output)))
    console.print(
        f"{files}: {len(found.vector)} numbers, the mean of {counted(found.num_bars, 'bar')} after "
        f"layer {found.layer}"
    )


if __name__ == "__main__":
    run_recipe(main, EmbedConfig)
