"""From a shard folder to the streams of one rank."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meloformer.batches.attributes import ALL_ATTRIBUTES, NO_ATTRIBUTES, AttributeDropout
from meloformer.batches.collate import Collator
from meloformer.batches.phases import PhaseConfig
from meloformer.batches.plan import EpochFacts, PlanConfig, epoch_facts
from meloformer.batches.stream import TrainStream, ValidationStream
from meloformer.batches.windows import check_bars_fit
from meloformer.errors import BatchError
from meloformer.model.masks import Rule
from meloformer.shards.manifest import MANIFEST_NAME
from meloformer.shards.reader import ShardFolder
from meloformer.training.config import ResolvedConfig
from meloformer.training.ranks import Ranks

# What the model is told of a piece before it is scored.
TOLD = {"all": ALL_ATTRIBUTES, "none": NO_ATTRIBUTES}


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Shards and the plan over them.

    Args:
        shards: the opened folder.
        plan: what every rank follows.
        phases: micro-batch and workers by step.
        blocks_rule: rule to build block lists for; None builds none.
        config: the run's flags.
    """

    shards: ShardFolder
    plan: PlanConfig
    phases: PhaseConfig
    blocks_rule: Rule | None
    config: ResolvedConfig

    def epoch(self, epoch: int) -> EpochFacts:
        """Plan an epoch and count it."""
        return epoch_facts(self.shards.split("train"), self.plan, epoch)

    def train_stream(self, ranks: Ranks, step: int, state: dict[str, Any] | None) -> TrainStream:
        """Steps of a rank, from where `state` was taken."""
        return TrainStream(
            self._collator("train", AttributeDropout(), self.config.max_transposition),
            self.plan,
            self.phases,
            rank=ranks.rank,
            world_size=ranks.world_size,
            state=state,
            step=step,
            pin_memory=ranks.device.type == "cuda",
        )

    def validation_streams(self, ranks: Ranks) -> dict[str, ValidationStream]:
        """Validation rows of a rank, by what the model is told."""
        return {
            told: ValidationStream(
                self._collator("valid", attributes, 0),
                self.plan,
                rank=ranks.rank,
                world_size=ranks.world_size,
                micro_batch_rows=self.config.batch_size,
                # Few and short batches: starting workers would take longer than the work.
                num_workers=0 if ranks.device.type == "cpu" else min(self.config.num_workers, 2),
                max_rows=self.config.validation_rows,
                pin_memory=ranks.device.type == "cuda",
            )
            for told, attributes in TOLD.items()
        }

    def _collator(self, split: str, attributes: AttributeDropout, shift: int) -> Collator:
        return Collator(
            index=self.shards.split(split),
            attributes=attributes,
            seed=self.config.seed,
            max_transposition=shift,
            blocks_rule=self.blocks_rule,
        )


def open_data(config: ResolvedConfig, global_batch: int, blocks_rule: Rule | None) -> TrainData:
    """Check the shards and plan over them.

    Args:
        config: the run's flags.
        global_batch: rows of an optimizer step.
        blocks_rule: rule to build block lists for; None builds none.

    Raises:
        ShardError: the folder is missing, damaged, or of another vocabulary.
        BatchError: a split that training needs is empty, or a bar is longer than a row.
    """
    shards = ShardFolder.open(config.data)
    for name in ("train", "valid"):
        split = shards.split(name)
        if not split.num_pieces:
            raise BatchError(
                f"--data {config.data_name}: found no piece in its {name} split, allowed 1 or "
                "more; build the shards with another --valid_share and --test_share, or from more "
                "files"
            )
        check_bars_fit(split, config.max_seq_len)
    return TrainData(
        shards=shards,
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
        ),
        blocks_rule=blocks_rule,
        config=config,
    )


def manifest_sum(data: str) -> str:
    """sha256 of a shard folder's manifest, which holds the sums of all its shards."""
    return hashlib.sha256((Path(data) / MANIFEST_NAME).read_bytes()).hexdigest()
