"""From shard folders to the streams of one rank."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meloformer.batches.attributes import ALL_ATTRIBUTES, NO_ATTRIBUTES, AttributeDropout
from meloformer.batches.augmentation import NO_AUGMENTATION, Augmentation
from meloformer.batches.collate import Collator
from meloformer.batches.facts import MAX_COUNTED, EpochFacts, epoch_facts
from meloformer.batches.filling import NO_FILLING, Filling
from meloformer.batches.held_out import held_out_elsewhere
from meloformer.batches.mixture import Mixture
from meloformer.batches.phases import PhaseConfig
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig
from meloformer.batches.stream import TrainStream, ValidationStream
from meloformer.batches.windows import check_bars_fit
from meloformer.errors import BatchError
from meloformer.model.masks import Rule
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder
from meloformer.training.config import ResolvedConfig
from meloformer.training.ranks import Ranks

# Pieces of all epochs together up to which their steps are counted one by one.
_MAX_COUNTED = 2 * MAX_COUNTED

# What the model is told of a piece before it is scored.
TOLD = {"all": ALL_ATTRIBUTES, "none": NO_ATTRIBUTES}


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Shards and the plan over them.

    Args:
        folders: the opened folders, in the order of --data.
        plan: what every rank follows.
        phases: micro-batch and workers by step.
        blocks_rule: rule to build block lists for; None builds none.
        config: the run's flags.
        left_out: for each folder the training pieces that no epoch takes, as `find_left_out` says.
    """

    folders: tuple[ShardFolder, ...]
    plan: PlanConfig
    phases: PhaseConfig
    blocks_rule: Rule | None
    config: ResolvedConfig
    left_out: tuple[np.ndarray, ...] = ()
    _facts: dict[int, EpochFacts] = field(default_factory=dict)

    def split(self, name: str) -> PieceIndex:
        """Pieces of all folders: for training by their weights, else each once."""
        weights = self.config.weights if name == "train" else (1.0,) * len(self.folders)
        parts = [folder.split(name, shard_cache=self.config.shard_cache) for folder in self.folders]
        if weights == (1.0,):
            return parts[0]
        left_out = self.left_out if name == "train" else ()
        return Mixture(
            parts, weights, self.config.seed, left_out, group_shards=self.plan.group_shards
        )

    def find_left_out(self) -> tuple[np.ndarray, ...]:
        """For each folder the training pieces that another folder keeps for validation or test.

        Raises:
            BatchError: nothing is left of a folder.
        """
        if len(self.folders) == 1:
            return ()
        splits = {name: [folder.split(name) for folder in self.folders] for name in SPLITS}
        held_out = list(zip(splits["valid"], splits["test"], strict=True))
        left_out = held_out_elsewhere(splits["train"], held_out)
        for folder, split, out in zip(self.folders, splits["train"], left_out, strict=True):
            if len(out) == split.num_pieces:
                raise BatchError(
                    f"--data {folder.storage.name}: found that each of its {len(out):,} training "
                    "pieces is held out by another folder of --data, allowed fewer; leave this "
                    "folder out of --data, or build one folder from all files"
                )
        return left_out

    def describe_left_out(self) -> str | None:
        """A line on what is left out, to be said; None where that is nothing."""
        counts = [len(out) for out in self.left_out]
        if not sum(counts):
            return None
        named = ", ".join(
            f"{count:,} of {folder.storage.name}"
            for folder, count in zip(self.folders, counts, strict=True)
            if count
        )
        return (
            f"--data: {sum(counts):,} training pieces are left out, of which another folder holds "
            f"exact copies for validation or test ({named})"
        )

    @property
    def manifest_sum(self) -> str:
        """Changes with any byte of any shard, and with the weights."""
        return manifest_sum(self.folders, self.config.weights)

    @property
    def bars_per_token(self) -> float:
        """Mean over an epoch's tokens; each bar has a summary."""
        totals = [
            weight * np.array([folder.manifest.total("train", what) for what in ("bars", "tokens")])
            for folder, weight in zip(self.folders, self.config.weights, strict=True)
        ]
        bars, tokens = np.sum(totals, axis=0)
        return float(bars / tokens)

    def epoch(self, epoch: int) -> EpochFacts:
        """Plan an epoch and count it, a large one in part."""
        if epoch not in self._facts:
            self._facts[epoch] = epoch_facts(self.split("train"), self.plan, epoch)
        return self._facts[epoch]

    def count_steps(self) -> tuple[int, str | None]:
        """Optimizer steps of a run; --max_steps beats --epochs.

        Returns:
            The number, and a line to be said where it is extrapolated.

        Raises:
            BatchError: the epochs hold no step.
        """
        if self.config.max_steps is not None:
            return self.config.max_steps, None
        first, epochs = self.epoch(0), self.config.epochs
        # Not those of the mixture, in which a piece may have many numbers.
        num_pieces = sum(
            folder.manifest.total("train", "pieces") * weight
            for folder, weight in zip(self.folders, self.config.weights, strict=True)
        )
        if first.counted < 1 or epochs * num_pieces > _MAX_COUNTED:
            num_steps = first.num_steps * epochs
            return num_steps, (
                f"--epochs {epochs}: {num_steps:,} steps, extrapolated from the first "
                f"{first.counted:.2g} epochs; --max_steps would set their number"
            )
        num_steps = sum(self.epoch(epoch).num_steps for epoch in range(epochs))
        if not num_steps:
            raise BatchError(
                f"--epochs {epochs}: found no piece in any of them, allowed 1 or more; raise "
                "--data_weights or --epochs"
            )
        return num_steps, None

    def train_stream(self, ranks: Ranks, step: int, state: dict[str, Any] | None) -> TrainStream:
        """Steps of a rank, from where `state` was taken."""
        return TrainStream(
            self._collator(
                "train",
                AttributeDropout(),
                self.config.augmentation,
                self.config.open_summary_rate,
                Filling(rate=self.config.fill_rate),
            ),
            self.plan,
            self.phases,
            rank=ranks.rank,
            world_size=ranks.world_size,
            state=state,
            step=step,
            pin_memory=ranks.device.type == "cuda",
            timeout_seconds=self.config.stalls.data_seconds,
        )

    def validation_streams(self, ranks: Ranks) -> dict[str, ValidationStream]:
        """Validation rows of a rank, by what the model is told."""
        return {
            told: ValidationStream(
                self._collator("valid", attributes, NO_AUGMENTATION),
                self.plan,
                rank=ranks.rank,
                world_size=ranks.world_size,
                micro_batch_rows=self.config.batch_size,
                # Few and short batches: starting workers would take longer than the work.
                num_workers=0 if ranks.device.type == "cpu" else min(self.config.num_workers, 2),
                max_rows=self.config.validation_rows,
                pin_memory=ranks.device.type == "cuda",
                timeout_seconds=self.config.stalls.data_seconds,
            )
            for told, attributes in TOLD.items()
        }

    def _collator(
        self,
        split: str,
        attributes: AttributeDropout,
        augmentation: Augmentation,
        open_summary_rate: float = 0.0,
        filling: Filling = NO_FILLING,
    ) -> Collator:
        return Collator(
            index=self.split(split),
            attributes=attributes,
            seed=self.config.seed,
            augmentation=augmentation,
            blocks_rule=self.blocks_rule,
            block_size=self.config.block_size,
            open_summary_rate=open_summary_rate,
            filling=filling,
        )


def manifest_sum(folders: Sequence[ShardFolder], weights: tuple[float, ...]) -> str:
    """A sum that changes with any byte of any shard, and with the weights of several folders."""
    sums = [folder.manifest_sha256 for folder in folders]
    if weights == (1.0,):
        return sums[0]
    return hashlib.sha256(json.dumps([sums, list(weights)]).encode()).hexdigest()


def open_data(config: ResolvedConfig, global_batch: int, blocks_rule: Rule | None) -> TrainData:
    """Check the shards and plan over them.

    Args:
        config: the run's flags.
        global_batch: rows of an optimizer step.
        blocks_rule: rule to build block lists for; None builds none.

    Raises:
        ShardError: a folder is missing, damaged, or of another vocabulary.
        BatchError: a split that training needs is empty, or a bar is longer than a row.
    """
    data = TrainData(
        folders=tuple(ShardFolder.open(folder, config.cache) for folder in config.data),
        plan=PlanConfig(
            max_seq_len=config.max_seq_len,
            collate=config.collate,
            global_batch=global_batch,
            seed=config.seed,
        ),
        phases=PhaseConfig(
            phases=config.phases,
            micro_batch_rows=config.batch_size,
            num_workers=config.num_workers,
            ends=config.phase_ends,
        ),
        blocks_rule=blocks_rule,
        config=config,
    )
    for folder in data.folders:
        if not folder.manifest.splits["train"]:
            raise _empty_split(folder.storage.name, "train")
    for name in ("train", "valid"):
        split = data.split(name)
        if not split.num_pieces:
            raise _empty_split(config.data_name, name)
        check_bars_fit(split, config.max_seq_len)
    return data


def _empty_split(where: str, name: str) -> BatchError:
    return BatchError(
        f"--data {where}: found no piece in its {name} split, allowed 1 or more; build the shards "
        "with another --valid_share and --test_share, or from more files"
    )
