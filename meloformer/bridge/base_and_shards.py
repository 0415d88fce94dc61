"""A trained MuseFormer and the shards whose pieces it summarises, as recipes are told of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from meloformer.bridge.base_folder import find_base
from meloformer.bridge.extraction import WindowSettings
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import Weights, load_model
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.reader import ShardFolder


class BaseAndShards(NamedTuple):
    """What a `SummarisingConfig` names.

    Args:
        model: in evaluation mode, on its device.
        folder: that its weights come from.
        shards: the pieces.
    """

    model: MuseFormer
    folder: Path
    shards: ShardFolder


@dataclass(frozen=True, kw_only=True)
class SummarisingConfig:
    """Flags of every recipe that looks at a model's summaries of a shard set.

    Args:
        data: shard folder, or its URL.
        checkpoint: run folder, step folder or model folder; the newest run if not given.
        weights: those of the last step, or the moving average of a run trained with --ema.
        windows: how pieces are cut.
        batch_size: rows that are computed together; no number depends on it.
        device: where the model runs.
        cache: files of remote shards.
    """

    data: str
    checkpoint: Path | None = None
    weights: Weights = "raw"
    windows: WindowSettings = field(default_factory=WindowSettings)
    batch_size: int = 8
    device: DeviceName = "auto"
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size {self.batch_size}: allowed 1 or more")

    def load(self) -> BaseAndShards:
        """The model and the shards.

        Raises:
            CheckpointError: there is no model, or it is damaged.
            TokenError: it knows another vocabulary.
            ShardError: there are no shards, or they are damaged.
        """
        folder = find_base(self.checkpoint, self.weights)
        shards = ShardFolder.open(self.data, self.cache)
        return BaseAndShards(load_model(folder, choose_device(self.device)), folder, shards)
