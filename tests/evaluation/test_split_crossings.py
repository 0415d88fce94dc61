from dataclasses import replace

import numpy as np
import pytest

from meloformer.evaluation.split_crossings import find_crossings, read_split
from meloformer.shards.reader import ShardFolder


@pytest.fixture(scope="module")
def folder(chorale_shards) -> ShardFolder:
    return ShardFolder.open(chorale_shards)


def with_splits(folder: ShardFolder, **splits) -> ShardFolder:
    """The same shards, handed out to other splits."""
    empty = {"train": (), "valid": (), "test": ()}
    return replace(folder, manifest=replace(folder.manifest, splits=empty | splits))


def test_nothing_crosses_the_split_of_a_folder(folder) -> None:
    found = find_crossings([folder])
    assert found.total == 0 and found.pairs is None and not found.not_looked_for
    assert found.num_pieces == folder.manifest.num_pieces


def test_a_planted_piece_crosses_with_its_key_its_tune_and_its_cluster(folder) -> None:
    found = find_crossings([folder], is_planted=True)
    assert (found.keys, found.tunes, found.clusters) == (1, 1, 1)


def test_a_folder_made_without_looking_for_near_copies_is_named(folder) -> None:
    settings = replace(folder.manifest.settings, near_copy_threshold=0.0)
    blind = replace(folder, manifest=replace(folder.manifest, settings=settings))
    assert find_crossings([blind]).not_looked_for == (folder.storage.name,)


def test_what_another_folder_holds_out_is_left_out_of_training(folder) -> None:
    splits = folder.manifest.splits
    other = with_splits(folder, train=splits["test"], valid=splits["train"])
    found = find_crossings([folder, other])
    assert found.num_left_out == sum(
        len(splits[name]) and folder.split(name).num_pieces for name in ("train", "test")
    )
    assert found.total == 0


def test_near_copies_between_folders_are_found_though_exact_ones_are_left_out(folder) -> None:
    clusters = read_split(folder, "train").clusters
    index = folder.split("train")
    shard_of = np.repeat(np.arange(index.num_shards), np.diff(index.first_piece))
    apart = [
        shard_of[clusters == name]
        for name in np.unique(clusters)
        if len(set(shard_of[clusters == name])) > 1
    ]
    assert apart, "no two near copies lie in two shards"
    held_out = with_splits(folder, valid=(folder.manifest.splits["train"][apart[0][0]],))
    found = find_crossings([folder, held_out])
    assert found.keys == 0 and found.num_left_out > 0
    assert found.pairs >= 1 and found.clusters >= 1
