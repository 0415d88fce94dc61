from dataclasses import replace

import numpy as np
import pytest

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.augmentation import Augmentation
from meloformer.batches.collate import Collator
from meloformer.batches.windows import Window
from meloformer.errors import ConfigError
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.check import check
from meloformer.tokens.hid import decode

CHANGED = {
    "max_transposition": "pitch",
    "max_tempo_shift": "bar_tempo",
    "max_velocity_shift": "velocity",
}


@pytest.fixture(scope="module")
def plain(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    return Collator(index=index, attributes=ALL_ATTRIBUTES, seed=5)


def windows(collator):
    return [Window(piece, 1, 3) for piece in range(collator.index.num_pieces)]


@pytest.mark.parametrize("name", CHANGED)
def test_each_shift_changes_its_own_thing_of_the_music_alone(plain, name):
    shifting = replace(plain, augmentation=Augmentation(**{name: 3}))
    changed = 0
    for window in windows(plain):
        ids = shifting.window_ids(0, window)
        check(ids)
        before, after = decode(plain.window_ids(0, window)), decode(ids)
        assert replace(after, **{CHANGED[name]: getattr(before, CHANGED[name])}) == before
        changed += not np.array_equal(ids, plain.window_ids(0, window))
    assert changed > len(windows(plain)) / 2


def test_shifts_follow_from_seed_epoch_piece_and_bar_so_that_a_resumed_run_repeats_them(plain):
    augmentation = Augmentation(max_transposition=5, max_tempo_shift=5, max_velocity_shift=5)
    shifting = replace(plain, augmentation=augmentation)

    def drawn(collator, epoch, first=1):
        chosen = [window._replace(first_bar=first) for window in windows(collator)]
        return [collator.window_ids(epoch, window).tolist() for window in chosen]

    assert drawn(shifting, 0) == drawn(replace(shifting), 0)
    assert drawn(shifting, 0) != drawn(shifting, 1)
    assert drawn(shifting, 0) != drawn(replace(shifting, seed=6), 0)


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("value", [-1, 65])
def test_shifts_beyond_the_tables_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"--{name} {value}: allowed 0\.\.\d+"):
        Augmentation(**{name: value})
