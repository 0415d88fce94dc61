"""Rank the MIDI files of a folder by how like one they are to a model.

    python launch/similar.py song.mid folder/ --checkpoint runs/<name> --top 10
    python launch/similar.py song.mid folder/ --checkpoint runs/<name> --json ranking.json

Cosines between vectors as embed.py makes them, after the mean over the files of the folder is taken
from all of them. The file itself is left out where the folder holds it; files that cannot be read
are named, skipped and counted.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from meloformer.bridge.base_folder import find_player
from meloformer.command_line import check_at_least, check_json_file, run_recipe
from meloformer.evaluation.piece_vectors import check_has_layer, vector_of_asked, vector_of_file
from meloformer.evaluation.similar_pieces import Ranking, midi_files, rank
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import Weights, load_model, model_fingerprint
from meloformer.plurals import counted


@dataclass(frozen=True, kw_only=True)
class SimilarConfig:
    """Flags of launch/similar.py.

    Args:
        midi: the MIDI file that is asked about.
        folder: with MIDI files, also in folders below it.
        top: files to show.
        json: file for the whole ranking.
        checkpoint: run folder, step folder or model folder; the newest run if not given, and the
            model in the box where there is none.
        weights: those of the last step, or the moving average of a run trained with --ema.
        device: where the model runs.
    """

    midi: tyro.conf.Positional[Path]
    folder: tyro.conf.Positional[Path]
    top: int = 20
    json: Path | None = None
    checkpoint: Path | None = None
    weights: Weights = "raw"
    device: DeviceName = "auto"


def main(config: SimilarConfig) -> None:
    """Load, summarise every file, rank, show."""
    check_at_least(config, {"top": 1})
    check_json_file(config.json)
    files = midi_files(config.folder, besides=config.midi)
    place, which = find_player(config.checkpoint, config.weights)
    if which:
        Console().print(which, markup=False, soft_wrap=True)
    model, fingerprint = load_model(place, choose_device(config.device)), model_fingerprint(place)
    check_has_layer(model)
    asked = vector_of_asked(model, fingerprint, config.midi)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=len(files))
        ranking = rank(
            asked.vector,
            config.folder,
            files,
            lambda path: vector_of_file(model, fingerprint, path).vector,
            on_file=lambda: progress.advance(task),
        )
    console = Console()
    for path, reason in ranking.skipped:
        console.print(f"skipped {path}: {reason}", markup=False, soft_wrap=True)
    console.print(
        f"{counted(len(ranking.files), 'file')}, {len(ranking.skipped)} skipped; cosines to "
        f"{config.midi.name}, after the mean over the folder's files was taken from all vectors",
        markup=False,
        soft_wrap=True,
    )
    console.print(as_table(ranking, config))
    if config.json is not None:
        config.json.write_text(json.dumps(as_json(ranking, asked.facts()), indent=1) + "\n")


def as_table(ranking: Ranking, config: SimilarConfig) -> Table:
    """The most similar files."""
    table = Table("", "file")
    table.add_column("cosine", justify="right")
    for place, (path, cosine) in enumerate(ranking.files[: config.top], start=1):
        # Names of files are no markup.
        name = Text(str(path.relative_to(config.folder)))
        table.add_row(str(place), name, f"{cosine:+.3f}")
    return table


def as_json(ranking: Ranking, asked: dict[str, str | int]) -> dict[str, object]:
    """The whole ranking as plain data."""
    return {
        "asked": asked,
        "centred_on": "mean over the folder's files",
        "files": [{"file": str(path), "cosine": cosine} for path, cosine in ranking.files],
        "skipped": [{"file": str(path), "reason": reason} for path, reason in ranking.skipped],
    }


if __name__ == "__main__":
    run_recipe(main, SimilarConfig)
