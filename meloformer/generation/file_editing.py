"""MIDI files that are to be continued, filled or accompanied: flags, what they refuse, files."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from meloformer.bridge.flow import row_seed
from meloformer.command_line import changed_flags
from meloformer.errors import ConfigError, GenerationError, MidiError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.editing import continue_piece, rewrite_bars, write_instruments
from meloformer.generation.hole_writing import Stop
from meloformer.generation.notices import Notice, Say
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.sharing import share_of_environment
from meloformer.generation.text import TextConfig
from meloformer.generation.writing import WritingConfig, make_folder, numbered, write_piece
from meloformer.midi.general_midi import instrument_in_words
from meloformer.midi.grid import STEPS_PER_QUARTER
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise_counted
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.model.museformer import MuseFormer
from meloformer.plurals import counted


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """Flags that change a given piece; all that is not written stays, note for note.

    Args:
        continue_midi: MIDI file to go on from; --bars says how many bars are written, --instruments
            who plays on, if not all.
        from_bar: first bar that is written, from 0; what the file has from there on is left out.
            If not given, its end.
        fill_midi: MIDI file, some bars of which are written anew; with --instruments only what
            these play there.
        fill_bars: which: first and last bar, from 0 (a picture counts from 1), such as 4-7, or one
            bar.
        accompany_midi: MIDI file, for which --instruments are written, or replaced where it has
            them.
    """

    continue_midi: Path | None = None
    from_bar: int | None = None
    fill_midi: Path | None = None
    fill_bars: str | None = None
    accompany_midi: Path | None = None

    def __post_init__(self) -> None:
        given = [flag for flag, path in self._files.items() if path is not None]
        if len(given) > 1:
            raise GenerationError(
                f"{' and '.join(given)} at once: allowed: one of {', '.join(self._files)}"
            )
        if self.from_bar is not None and self.continue_midi is None:
            raise GenerationError(
                f"--from_bar {self.from_bar} without --continue_midi: allowed: a MIDI file to "
                "continue beside it"
            )
        if (self.fill_midi is None) != (self.fill_bars is None):
            found = "--fill_midi" if self.fill_bars is None else "--fill_bars"
            raise GenerationError(
                f"{found} alone: allowed: both a MIDI file and the bars that are written anew, "
                "such as --fill_midi song.mid --fill_bars 4-7"
            )
        _ = self.bars_to_fill

    @property
    def is_given(self) -> bool:
        """Whether a file is to be changed."""
        return any(path is not None for path in self._files.values())

    @property
    def file(self) -> tuple[str, Path]:
        """The flag and the file that is to be changed."""
        return next((flag, path) for flag, path in self._files.items() if path is not None)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Files that are read, by flag."""
        return {flag: (path,) for flag, path in self._files.items() if path is not None}

    @property
    def bars_to_fill(self) -> tuple[int, int]:
        """First bar and one past the last of --fill_bars; none without it.

        Raises:
            GenerationError: no such bars.
        """
        if self.fill_bars is None:
            return 0, 0
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", self.fill_bars)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise GenerationError(
                f"--fill_bars {self.fill_bars}: allowed are the first and the last bar, from 0, "
                "such as 4-7, or one bar"
            )
        return first, last + 1

    @property
    def _files(self) -> dict[str, Path | None]:
        return {
            "--continue_midi": self.continue_midi,
            "--fill_midi": self.fill_midi,
            "--accompany_midi": self.accompany_midi,
        }

    def check_wishes(self, controls: ControlConfig, steering: TextConfig) -> None:
        """Refuse what does not go together with a given piece.

        Raises:
            GenerationError: a wish for a piece that is new as a whole, or instruments that are
                missing.
        """
        if not self.is_given:
            return
        flag, _ = self.file
        allowed = ("bars", "instruments") if self.continue_midi else ("instruments",)
        wished = [name for name in changed_flags(controls) if name not in allowed]
        wished += changed_flags(steering)
        if wished:
            reason = {
                "bars": "a piece keeps its bars where it is not continued",
                "no_drums": "who plays is said by --instruments",
            }.get(wished[0], "metre, tempo and all that is kept are the file's own")
            raise GenerationError(
                f"--{wished[0]} with {flag}: {reason}; allowed beside it: "
                f"{', '.join(f'--{one}' for one in allowed)} and the flags of sampling"
            )
        if self.accompany_midi and not controls.instruments:
            raise GenerationError(
                "--accompany_midi without --instruments: allowed: those that are to be written, "
                "such as --instruments 33 drums"
            )


def edited(
    model: MuseFormer,
    piece: QuantisedPiece,
    edits: EditConfig,
    controls: ControlConfig,
    sampling: SamplingConfig,
    *,
    seed: int,
    stop: Stop | None = None,
    say: Say,
) -> QuantisedPiece:
    """A piece as the flags want it.

    Args:
        model: in evaluation mode.
        piece: what the file holds.
        edits: what is to be done.
        controls: bars and instruments.
        sampling: how bold the choice of a token is.
        seed: of the draws.
        stop: see `editing.rewrite_bars`.
        say: called with each notice that a user should read.

    Raises:
        GenerationError: bars that the piece does not have, or a model that cannot do it.
    """
    instruments = controls.listed_instruments or None
    if edits.continue_midi is not None:
        start = piece.num_bars if edits.from_bar is None else edits.from_bar
        return continue_piece(
            model, piece, start, controls.num_bars, sampling,
            seed=seed, instruments=instruments, stop=stop, say=say,
        )  # fmt: skip
    if edits.fill_midi is not None:
        return rewrite_bars(
            model, piece, *edits.bars_to_fill, sampling,
            seed=seed, instruments=instruments, stop=stop, say=say,
        )  # fmt: skip
    return write_instruments(
        model, piece, instruments or (), sampling, seed=seed, stop=stop, say=say
    )


def read_to_edit(flag: str, path: Path, say: Callable[[str], None]) -> QuantisedPiece:
    """The music of a file, on the grid; says what the grid could not hold.

    Raises:
        GenerationError: the file cannot be read.
    """
    try:
        piece = read_midi(path)
        music, counts = quantise_counted(piece)
    except MidiError as error:
        raise GenerationError(f"{flag} {path}: {error}; allowed: a MIDI file") from error
    if piece.recovered:
        say(f"{path}: damaged or wrapped ({piece.recovered}); this is what could be read of it")
    lost = {
        "onsets moved": num_off_grid(piece),
        "notes merged": counts.merged,
        "shortened": counts.durations_cut + counts.durations_capped,
        "tempo changes inside bars averaged": counts.tempos_averaged,
        "pitch bends and controllers left out": counts.bends + counts.controllers,
    }
    said = ", ".join(f"{count} {what}" for what, count in lost.items() if count)
    if said:
        say(f"{path}: {counted(counts.notes, 'note')} put on the grid ({said})")
    return music


def num_off_grid(piece: Piece) -> int:
    """Notes that do not begin on a step of the grid."""
    ticks = piece.notes.onset_ticks.astype(np.int64)
    return int(np.count_nonzero(ticks * STEPS_PER_QUARTER % piece.ticks_per_quarter))


def write_edits(config: WritingConfig, edits: EditConfig, model: MuseFormer) -> None:
    """Change a file, as many times as samples are asked for, and write each version.

    Args:
        config: where to, how many.
        edits: which file, and how.
        model: in evaluation mode.

    Raises:
        ConfigError: flags of new pieces.
        GenerationError: the file cannot be read, or not be changed like that.
    """
    num_processes = share_of_environment().num_processes
    found = {
        "--endless": config.endless,
        "--skip_existing": config.skip_existing,
        "--compile": config.compile,
        f"{num_processes} processes": num_processes > 1,
    }
    flag, path = edits.file
    for name, is_found in found.items():
        if is_found:
            raise ConfigError(
                f"{name} with {flag}: allowed is one process without --endless, --skip_existing "
                "and --compile"
            )
    # Names of files are no markup, and are not broken where they are long.
    console = Console(markup=False, soft_wrap=True)

    def tell(notice: Notice) -> None:
        console.print(notice.line)

    piece = read_to_edit(flag, path, console.print)
    make_folder(config.output)
    if sounds_like := config.rendering.sounds_like():
        console.print(sounds_like)
    started = time.perf_counter()
    paths = numbered(config.output, config.num_samples)
    for number, output in enumerate(paths):
        music = edited(
            model,
            piece,
            edits,
            config.controls,
            config.sampling,
            seed=row_seed(config.seed, number) if number else config.seed,
            # What is said of one version holds for all.
            say=(lambda notice: None) if number else tell,
        )
        title = f"{output.stem}, after {path.name}"
        files = write_piece(music, output, config.rendering, title)
        console.print(
            f"{files}: {counted(music.num_bars, 'bar')}, "
            f"{counted(music.num_notes, 'note')} ({_bars_of_players(music)})"
        )
    console.print(f"{time.perf_counter() - started:.1f} s in all")


def _bars_of_players(music: QuantisedPiece) -> str:
    """Who plays in how many bars, so that nobody has to listen for an accompaniment of one bar."""
    num_bars = {
        one: len(np.unique(music.bar[music.instrument == one]))
        for one in np.unique(music.instrument).tolist()
    }
    return ", ".join(
        f"{instrument_in_words(one)} in {counted(number, 'bar')}"
        for one, number in num_bars.items()
    )
