"""What became of each file of a source: its bytes, or the reason why there are none."""

from pathlib import Path

from meloformer.errors import MidiError
from meloformer.shards.sources import open_source


def outcomes(midi: Path | str) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for file in open_source(str(midi)).files():
        assert file.name not in found, "each once"
        try:
            found[file.name] = file.read()
        except MidiError as error:
            found[file.name] = error.reason
    return found
