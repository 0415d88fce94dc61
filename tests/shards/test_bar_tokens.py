"""A bar that no row can hold never gets into a shard."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError, MidiError
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from meloformer.shards.bar_tokens import longest_bar
from meloformer.shards.convert import convert_midi
from meloformer.shards.manifest import MANIFEST_NAME, ShardSettings, load_manifest, parse_manifest
from meloformer.tokens.windows import cut_window


def test_the_longest_bar_bounds_every_window_of_one_bar(chorale: QuantisedPiece) -> None:
    stored = convert_midi(midi_bytes(to_piece(chorale)), "a", ShardSettings()).stored
    ids = np.load(io.BytesIO(stored.ids_npy))
    windows = [cut_window(ids, bar, bar + 1) for bar in range(chorale.num_bars)]
    longest = max(len(window) for window in windows)
    assert longest <= longest_bar(stored.bar_starts) <= longest + 3


def test_a_bar_of_too_many_tokens_rejects_its_piece_and_says_which(chorale: QuantisedPiece) -> None:
    data = midi_bytes(to_piece(chorale))
    most = longest_bar(convert_midi(data, "a", ShardSettings()).stored.bar_starts)
    for enough in (0, most):
        convert_midi(data, "a", ShardSettings(max_bar_tokens=enough))
    with pytest.raises(
        MidiError, match=rf"bar \d+ takes {most} tokens .* up to {most - 1} \(--max"
    ):
        convert_midi(data, "a", ShardSettings(max_bar_tokens=most - 1))


def test_all_real_music_at_hand_stays(chorales: list[bytes]) -> None:
    longest = [
        longest_bar(convert_midi(c, "a", ShardSettings()).stored.bar_starts) for c in chorales
    ]
    assert 3 * max(longest) < ShardSettings().max_bar_tokens


def test_a_folder_older_than_the_limit_loads_and_says_that_it_had_none(built: Path) -> None:
    data = json.loads((built / MANIFEST_NAME).read_text())
    assert data["settings"].pop("max_bar_tokens") == ShardSettings().max_bar_tokens
    old = parse_manifest(json.dumps(data).encode(), MANIFEST_NAME)
    assert old == replace(
        load_manifest(built), settings=replace(load_manifest(built).settings, max_bar_tokens=0)
    )


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max_bar_tokens -1: allowed 0"):
        ShardSettings(max_bar_tokens=-1)
