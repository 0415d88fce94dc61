"""Folders of MIDI files, or a trained model, from their names to a report."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from meloformer.bridge.base_folder import find_base
from meloformer.errors import ConfigError
from meloformer.evaluation.judged_pieces import (
    PieceSet,
    draw_held_out,
    held_out_pieces,
    read_pieces,
)
from meloformer.evaluation.likelihood_by_length import likelihood_by_length
from meloformer.evaluation.statistics_judge import StatisticsFindings, judge_sets
from meloformer.evaluation.statistics_report import (
    check_new_folder,
    new_folder,
    print_statistics,
    save_statistics,
)
from meloformer.evaluation.statistics_settings import StatisticsConfig
from meloformer.evaluation.written_pieces import write_pieces
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.weights import Weights, load_model, model_fingerprint
from meloformer.progress import Tell, shown
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source

SAMPLES_NAME = "samples"


def judge_folders(
    midi: Sequence[str],
    against: str | None,
    output: Path,
    config: StatisticsConfig,
    *,
    num_held_out: int,
    seed: int,
) -> None:
    """Judge folders of MIDI files side by side, and write and print the report.

    Args:
        midi: folders, archives, lists.
        against: shards whose held-out pieces are the reference, and in whose training split copies
            are looked for.
        output: a new folder.
        config: how.
        num_held_out: most held-out pieces of the reference.
        seed: of draws and intervals.

    Raises:
        ConfigError: an output that is taken, one folder twice, or no file that can be read.
        ShardError: no such folder, no MIDI in it, or damaged shards.
    """
    check_new_folder(output)
    names = distinct_names(midi)
    folder = None if against is None else ShardFolder.open(against)
    sources = [open_source(one) for one in midi]
    with new_folder(output) as unfinished, shown("judging", "done") as tell:
        sets = [
            read_pieces(
                source,
                name,
                run=local_engine(config.num_workers),
                first_bars=config.first_bars,
                on_files=_part(tell, f"files of {name}"),
            )
            for source, name in zip(sources, names, strict=True)
        ]
        reference, notes = None, []
        if folder is not None:
            drawn = draw_held_out(folder, num_held_out, seed)
            reference = f"{Path(folder.storage.name).name}, held out"
            held_out = held_out_pieces(
                drawn, reference, config.first_bars, _part(tell, "held-out pieces")
            )
            sets.insert(0, held_out)
            notes.append(_said_of(held_out))
        findings = judge_sets(
            sets, config, seed=seed, tell=tell, reference=reference, trained_on=folder
        )
        findings = replace(findings, notes=notes)
        facts = _settings(config, seed, midi=names, against=reference)
        title = " beside ".join(names)
        save_statistics(unfinished, findings, config, facts, title=title, seed=seed)
    _tell(findings, output)


def judge_model(
    checkpoint: Path,
    data: str,
    output: Path,
    config: StatisticsConfig,
    *,
    weights: Weights,
    device: str,
    sampling: SamplingConfig,
    num_pieces: int,
    bars: int,
    seed: int,
) -> None:
    """Judge a model: held-out pieces are scored, others are written and judged beside them.

    Args:
        checkpoint: run folder, step folder or model folder.
        data: shards with held-out pieces; their training split is looked through for copies.
        output: a new folder; takes the MIDI files too.
        config: how.
        weights: those of the last step, or their average.
        device: where the model runs.
        sampling: how bold the choice of a token is.
        num_pieces: pieces that are written, and held-out ones at most.
        bars: of each piece that is written, at most as many as its real one has; real ones are
            looked at as far.
        seed: of draws, sampling and intervals.

    Raises:
        ConfigError: an output that is taken, bars said twice, or no held-out piece.
        CheckpointError: no model there.
        ShardError: no shards there.
    """
    if config.first_bars is not None:
        raise ConfigError("--first_bars with --checkpoint: allowed: --bars, of all pieces alike")
    check_new_folder(output)
    folder = ShardFolder.open(data)
    model_folder = find_base(checkpoint, weights)
    drawn = draw_held_out(folder, num_pieces, seed)
    model = load_model(model_folder, device)
    with new_folder(output) as unfinished, shown("judging", "done") as tell:
        likelihood = likelihood_by_length(
            model, drawn, seed=seed, on_windows=_part(tell, "windows scored")
        )
        held_out = held_out_pieces(drawn, "held out", bars, _part(tell, "held-out pieces"))
        lengths = [min(bars, one.index.sizes(one.piece).bars) for one in drawn]
        write_pieces(
            model,
            [lengths[number % len(lengths)] for number in range(num_pieces)],
            sampling,
            unfinished / SAMPLES_NAME,
            seed=seed,
            on_pieces=_part(tell, "pieces written"),
        )
        written = read_pieces(
            open_source(str(unfinished / SAMPLES_NAME)),
            "written",
            run=local_engine(config.num_workers),
            first_bars=bars,
            on_files=_part(tell, "files of the model"),
        )
        findings = judge_sets(
            [held_out, written],
            config,
            seed=seed,
            tell=tell,
            reference=held_out.name,
            trained_on=folder,
        )
        findings = replace(findings, likelihood=likelihood, notes=[_said_of(held_out)])
        facts = _settings(
            replace(config, first_bars=bars),
            seed,
            model=model_fingerprint(model_folder),
            weights=weights,
            data=Path(folder.storage.name).name,
            sampling=asdict(sampling),
            num_pieces=num_pieces,
        )
        title = f"{checkpoint.name} beside {Path(folder.storage.name).name}"
        save_statistics(unfinished, findings, config, facts, title=title, seed=seed)
    _tell(findings, output)


def distinct_names(midi: Sequence[str]) -> list[str]:
    """What each input is called: the last part of its path, and more of it where that is another's.

    Raises:
        ConfigError: one path twice.

    >>> distinct_names(["a/out", "b/out", "c.zip"])
    ['a/out', 'b/out', 'c.zip']
    """
    paths = [os.path.normpath(os.path.abspath(one)) for one in midi]
    for path, count in Counter(paths).items():
        if count > 1:
            raise ConfigError(f"--midi {path}: found {count} times; allowed: each folder once")
    return [_own_name(path, [other for other in paths if other != path]) for path in paths]


def _own_name(path: str, others: Sequence[str]) -> str:
    parts = 1
    while _last(path, parts) in {_last(other, parts) for other in others}:
        parts += 1
    return _last(path, parts)


def _last(path: str, parts: int) -> str:
    return "/".join(Path(path).parts[-parts:])


def _said_of(held_out: PieceSet) -> str:
    return f"{len(held_out.pieces)} held-out pieces are the reference"


def _settings(config: StatisticsConfig, seed: int, **more: Any) -> Mapping[str, Any]:
    """What decides the figures, without the places of this machine."""
    measured = {"first_bars": config.first_bars, "distances": config.distances}
    return {**more, **measured, "seed": seed}


def _part(tell: Tell, part: str) -> Callable[[int, int], None]:
    """Tells how far one part is; of a part whose end is not known, nothing."""

    def told(done: int, total: int) -> None:
        if total:
            tell(done, total, part)

    return told


def _tell(findings: StatisticsFindings, output: Path) -> None:
    console = Console(highlight=False)
    print_statistics(findings, console)
    console.print(str(output), markup=False, soft_wrap=True)
