"""Pieces that a model writes to be judged: as long as real ones, told no more, as MIDI files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from meloformer.bridge.flow import row_seed
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import Sample, generate_batch
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode

# Pieces that are sampled side by side.
_AT_ONCE = 64


def write_pieces(
    model: MuseFormer,
    bars: Sequence[int],
    sampling: SamplingConfig,
    folder: Path,
    *,
    seed: int,
    on_pieces: Callable[[int, int], None],
) -> None:
    """Sample pieces and write each as a MIDI file.

    Args:
        model: in evaluation mode.
        bars: of each piece.
        sampling: temperature and cut-offs.
        folder: takes the files, numbered; made where missing.
        seed: each piece's draws follow from it and from its number.
        on_pieces: told how far it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(bars) - 1))
    # A batch takes as long as its longest piece.
    order = sorted(range(len(bars)), key=bars.__getitem__)
    for first in range(0, len(order), _AT_ONCE):
        numbers = order[first : first + _AT_ONCE]
        samples = [
            Sample(controls=ControlConfig(bars=bars[number]), seed=row_seed(seed, number))
            for number in numbers
        ]
        sampled = generate_batch(model, samples, sampling)
        for number, ids in zip(numbers, sampled, strict=True):
            music = decode(ids)
            # A piece of rests is no MIDI file: it is written as nothing, and counted as unreadable.
            path = folder / f"{number:0{digits}}.mid"
            if music.num_notes:
                write_midi(to_piece(music), path)
            else:
                path.write_bytes(b"")
        on_pieces(first + len(numbers), len(bars))
