"""The same pieces through the library webdataset alone: the format is nobody's but its."""

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from meloformer.errors import ConfigError, ShardError
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder


def differences_from_webdataset(
    folder: ShardFolder, splits: Sequence[str] = SPLITS
) -> Iterator[str]:
    """Read shards through webdataset and compare with ours; one line a difference.

    Args:
        folder: holds them.
        splits: whose shards are read.

    Raises:
        ConfigError: webdataset is not installed.
        ShardError: a shard is damaged, or the folder is a URL.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ConfigError(
            f"--with webdataset needs the extra `shards` ({error}); "
            "install it with `pip install 'meloformer[shards]'`"
        ) from error
    for split in splits:
        index = folder.split(split)
        if index.num_pieces == 0:
            continue
        urls = [str(folder.path / entry.file) for entry in folder.manifest.splits[split]]
        samples = _samples(webdataset.WebDataset(urls, shardshuffle=False).decode(), urls)
        for piece, sample in zip_longest(range(index.num_pieces), samples):
            if piece is None or sample is None:
                side = "ends before ours" if sample is None else "goes on after ours"
                yield f"{folder.path / split}: webdataset {side}, at piece {piece}"
                return
            place = f"{folder.path / split}: piece {index.key(piece)}"
            if sample["__key__"] != index.key(piece):
                yield f"{place}: webdataset reads {sample['__key__']} in its place"
            elif not np.array_equal(sample["npy"], index.read(piece)):
                yield f"{place}: webdataset reads other tokens"
            elif sample["json"] != index.facts(piece):
                yield f"{place}: webdataset reads other facts"


def _samples(dataset: Iterable[dict[str, Any]], urls: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ShardError(f"webdataset cannot read {', '.join(urls)} ({error})") from error
