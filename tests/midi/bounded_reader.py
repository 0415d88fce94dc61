"""Reads each file of a folder and prints what became of it; a file over the bounds kills it."""

import json
import resource
import signal
import sys
from pathlib import Path

from meloformer.errors import MidiError
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi

MAX_MEMORY_BYTES = 3 << 29
MAX_SECONDS_PER_FILE = 60


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for path in sorted(folder.iterdir()):
        signal.alarm(MAX_SECONDS_PER_FILE)
        try:
            piece = read_midi(path)
            quantise(piece)
            outcome = f"read {piece.recovered}"
        except MidiError as refusal:
            assert refusal.detail, path
            outcome = refusal.reason
        print(json.dumps({path.name: outcome}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
