"""Whether an installation works: pieces of its own to tokens, shards and a model's music."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from meloformer.__main__ import recipes
from meloformer.command_line import LAUNCH
from meloformer.errors import ReleaseError
from meloformer.midi import grid
from meloformer.midi.piece import Notes, Piece, Tempos, TimeSignatures, Track
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.release.programs import run_program
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import VOCAB_SIZE, fingerprint

_TICKS_PER_QUARTER = 480
_NUM_BARS = 16
_NUM_PIECES = 6
_MAJOR = np.array([0, 2, 4, 5, 7, 9, 11])


def check_installation(folder: Path) -> Iterator[str]:
    """Walk the road once, small, and say after each part what was found.

    Args:
        folder: empty; everything is written into it.

    Raises:
        ReleaseError: a part does not do what it should.
    """
    meloformer = console_command()
    yield f"imported from {LAUNCH.parent}"

    listed = run_program(meloformer, folder)
    missing = [" ".join(words) for words in recipes() if f"  {' '.join(words)} " not in listed]
    _expect(not missing, f"`meloformer` lists every command, but for {missing}")
    yield f"`meloformer` lists {len(recipes())} commands"

    num_tokens = write_pieces(folder / "midi")
    yield f"{_NUM_PIECES} pieces as tokens and back, {num_tokens:,} tokens"

    shard_data = [*meloformer, "shard_data", "--midi", "midi", "--output", "shards"]
    run_program([*shard_data, "--num_workers", 1], folder)
    run_program([*meloformer, "tools", "inspect_shards", "shards", "--verify"], folder)
    yield "shards, built and verified"

    save_random_model(folder / "model")
    generate = [*meloformer, "generate", "--checkpoint", "model", "--bars", 2, "--seed", 0]
    run_program([*generate, "--output", "out.mid"], folder)
    num_notes = sum(len(track.notes) for track in read_midi(folder / "out.mid").tracks)
    _expect(num_notes > 0, "a model's piece has notes")
    yield f"2 bars of a random model, {num_notes} notes"


def console_command() -> list[str]:
    """`meloformer` of this installation; in a checkout, where there may be none, the module.

    Raises:
        ReleaseError: it is installed without the command.
    """
    script = shutil.which("meloformer", path=str(Path(sys.executable).parent))
    is_checkout = (LAUNCH.parent / "pyproject.toml").is_file()
    _expect(bool(script) or is_checkout, f"`meloformer` lies beside {sys.executable}")
    return [script] if script and not is_checkout else [sys.executable, "-m", "meloformer"]


def write_pieces(folder: Path, count: int = _NUM_PIECES) -> int:
    """Pieces of two instruments by chance, as MIDI files.

    Args:
        folder: to be made.
        count: how many pieces.

    Returns:
        Tokens of all of them.

    Raises:
        ReleaseError: a piece is not the same after the file, or after its tokens.
    """
    folder.mkdir(parents=True)
    num_tokens = 0
    for number in range(count):
        piece = quantise(_piece(number))
        path = folder / f"{number}.mid"
        write_midi(to_piece(piece), path)
        tokens = encode(quantise(read_midi(path)))
        _expect(decode(tokens) == piece, f"{path} is the piece that was written")
        num_tokens += len(tokens)
    return num_tokens


def save_random_model(folder: Path) -> None:
    """A MuseFormer of the smallest size that nobody has trained."""
    torch.manual_seed(0)
    config = MuseFormerConfig(
        **asdict(SIZES["tiny"]),
        vocab_size=VOCAB_SIZE,
        num_onsets=grid.MAX_BAR_STEPS,
        num_instruments=grid.NUM_INSTRUMENTS,
        max_seq_len=1024,
    )
    model = MuseFormer(config)
    save_model(folder, config, model.state_dict(), {"tokenizer": fingerprint()})


def _piece(number: int) -> Piece:
    """A tune of eighths and a bass of halves, by chance, in a key that follows from its number."""
    rng = np.random.default_rng(number)
    tracks = []
    for program, octave, step in ((0, 5, _TICKS_PER_QUARTER // 2), (32, 3, _TICKS_PER_QUARTER * 2)):
        onsets = np.arange(0, _NUM_BARS * 4 * _TICKS_PER_QUARTER, step, dtype=np.int32)
        pitches = 12 * octave + number % 12 + _MAJOR[rng.integers(0, len(_MAJOR), len(onsets))]
        notes = Notes(
            onset_ticks=onsets,
            duration_ticks=np.full_like(onsets, step),
            pitch=pitches.astype(np.int32),
            velocity=np.full_like(onsets, 80),
        )
        tracks.append(Track(program=program, is_drum=False, name="", notes=notes))
    start = np.zeros(1, np.int32)
    return Piece(
        ticks_per_quarter=_TICKS_PER_QUARTER,
        tracks=tuple(tracks),
        tempos=Tempos(onset_ticks=start, bpm=np.array([120.0])),
        time_signatures=TimeSignatures(
            onset_ticks=start,
            numerator=np.array([4], np.int32),
            denominator=np.array([4], np.int32),
        ),
    )


def _expect(is_so: bool, what: str) -> None:
    if not is_so:
        raise ReleaseError(f"expected that {what}; found otherwise; install MeloFormer again")
