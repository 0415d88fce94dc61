"""Show the vocabulary, or a MIDI file as tokens, bar by bar.

python -m meloformer.tokens

python -m meloformer.tokens FILE.mid

python -m meloformer.tokens --output vocabulary.json
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meloformer.command_line import run_recipe
from meloformer.errors import TokenError
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.tokens.hid import encode
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    KIND_OF,
    OFFSET,
    VOCAB_SIZE,
    Kind,
    fingerprint,
    save_vocabulary,
    token_name,
)
from meloformer.tokens.windows import bar_starts

_MEANINGS = {
    Kind.CONTROL: "start, end, fill",
    Kind.BAR: "bar, chord",
    Kind.METRE: "metre",
    Kind.TEMPO: "bpm",
    Kind.KEY: "key",
    Kind.LENGTH: "bars left",
    Kind.DENSITY: "per quarter",
    Kind.INSTRUMENT: "instrument",
    Kind.ONSET: "steps",
    Kind.PITCH: "note",
    Kind.DURATION: "steps",
    Kind.VELOCITY: "velocity",
}
_STYLES = {
    Kind.CONTROL: "bold",
    Kind.BAR: "bold yellow",
    Kind.INSTRUMENT: "bold cyan",
    Kind.ONSET: "magenta",
    Kind.PITCH: "bold green",
    Kind.DURATION: "dim",
    Kind.VELOCITY: "dim",
}


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What to show.

    Args:
        file: MIDI file to show as tokens; the vocabulary where there is none.
        output: where to write the vocabulary as JSON.
    """

    file: tyro.conf.Positional[Path | None] = None
    output: Path | None = None


def main(config: ShowConfig) -> None:
    """Show what is asked for."""
    console = Console(highlight=False)
    if config.output is not None:
        if config.output.exists():
            raise TokenError(f"{config.output} exists; allowed: a new file; name another --output")
        save_vocabulary(config.output)
        console.print(f"{VOCAB_SIZE} tokens, {fingerprint()}: {config.output}", soft_wrap=True)
    elif config.file is not None:
        show_tokens(encode(quantise(read_midi(config.file))), console)
    else:
        show_vocabulary(console)


def show_vocabulary(console: Console) -> None:
    """A table of the blocks."""
    table = Table(title="HID vocabulary")
    table.add_column("block", no_wrap=True)
    table.add_column("first", justify="right")
    table.add_column("tokens", justify="right")
    for name in ("from", "to", "meaning"):
        table.add_column(name, no_wrap=True)
    for kind in Kind:
        first, size = OFFSET[kind], BLOCK_SIZES[kind]
        ends = (token_name(first), token_name(first + size - 1))
        table.add_row(kind.name, str(first), str(size), *ends, _MEANINGS[kind])
    console.print(table)
    console.print(f"{VOCAB_SIZE} tokens, sha256 {fingerprint()}", soft_wrap=True)


def show_tokens(ids: np.ndarray, console: Console) -> None:
    """One line for the prefix, one per bar's header, one per instrument of a bar.

    Args:
        ids: (T,) a checked sequence.
        console: where to show them.
    """
    labels = token_labels(ids)
    starts_line = np.ones(len(ids), dtype=bool)
    same_bar = labels.bar[1:] == labels.bar[:-1]
    starts_line[1:] = ~(same_bar & (labels.instrument[1:] == labels.instrument[:-1]))
    edges = np.append(np.flatnonzero(starts_line), len(ids))
    for start, end in pairwise(edges):
        if KIND_OF[ids[start]] == Kind.BAR:
            margin = f"{labels.bar[start] + 1:>5} "
        else:
            margin = " " * 8 if labels.instrument[start] > 0 else " " * 6
        line = Text(margin, style="default")
        for token_id in ids[start:end]:
            line.append(token_name(token_id), style=_STYLES.get(Kind(KIND_OF[token_id]), ""))
            line.append(" ")
        console.print(line, soft_wrap=True)
    num_notes = int(np.count_nonzero(labels.kind == Kind.PITCH))
    console.print(
        f"{len(ids)} tokens, {len(bar_starts(ids)) - 1} bars, {num_notes} notes, "
        f"{len(ids) / num_notes:.2f} tokens per note"
    )


if __name__ == "__main__":
    run_recipe(main, ShowConfig)
