"""The learning-rate range test: a short run whose rate grows from step to step, then thrown away.

Model, stream, ranks and engine are those of training; only the rate is another, so that the loss
does at a rate what it would do early in a run.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from meloformer.batches.plan import Collate
from meloformer.command_line import check_json_file
from meloformer.errors import ConfigError
from meloformer.model.config import Checkpointing
from meloformer.model.device import DeviceName
from meloformer.training.accumulation import add_up_gradients, read_step
from meloformer.training.config import Fuse, ModelSize, TrainConfig
from meloformer.training.leaving import before_leaving
from meloformer.training.lora import AdapterConfig
from meloformer.training.lr_curve import FEWEST_STEPS, RateCurve
from meloformer.training.nats import KindTotals
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.prepare import prepare
from meloformer.training.session import Session

# What a range test has no use for: nothing of it is kept, judged or listened to.
_UNUSED: dict[str, Any] = {
    "phases": "off",
    "samples": 0,
    "save_every": 0,
    "validate_every": 0,
    "check_gradients": "off",
}


@dataclass(frozen=True, kw_only=True)
class FindLRConfig:
    """Flags of launch/tools/find_lr.py: a range, and those of a run that bear on its rate.

    Args:
        lowest: rate of the first step.
        highest: rate of the last step, if the loss holds until then.
        num_steps: optimizer steps over the whole range.
        json: file for the curve; a picture of it goes beside it (.png).
        config: ds_configs file: how to partition.
        data: shard folders, or their URLs; the newest of data_shards/ if none is given.
        data_weights: passes over each folder of --data in an epoch.
        model_size: small on CUDA and tiny elsewhere if not given.
        init_from: start from the weights of a run, step or model folder: a rate for fine-tuning.
        freeze: what stays as it is, as train.py takes it; fewer weights may want another rate.
        batch_size: rows per rank and micro-step.
        gradient_accumulation_steps: micro-steps per optimizer step. The best rate depends on the
            rows of an optimizer step: take those of the run.
        max_seq_len: tokens of the longest row; longer on CUDA than elsewhere if not given.
        collate: whole pieces in rows of few lengths, or full rows of one length.
        num_workers: data processes per rank.
        attention: which tokens a token reads: a preset, or the path of a .json file.
        checkpointing: what the backward pass computes again.
        fuse: compile the pointwise parts, as training does.
        seed: of weights, plan and attribute dropout.
        device: where to compute.
        optimizer: as the run will have it.
        adapters: of fine-tuning, as the run will have them.
    """

    lowest: float = 1e-5
    highest: float = 1.0
    num_steps: int = 100
    json: Path | None = None
    config: Path = TrainConfig.config
    data: tuple[str, ...] = ()
    data_weights: tuple[float, ...] = ()
    model_size: ModelSize | None = None
    init_from: Path | None = None
    freeze: tuple[str, ...] = TrainConfig.freeze
    batch_size: int = TrainConfig.batch_size
    gradient_accumulation_steps: int = TrainConfig.gradient_accumulation_steps
    max_seq_len: int | None = None
    collate: Collate = TrainConfig.collate
    num_workers: int = TrainConfig.num_workers
    attention: str = TrainConfig.attention
    checkpointing: Checkpointing = TrainConfig.checkpointing
    fuse: Fuse = TrainConfig.fuse
    seed: int = TrainConfig.seed
    device: DeviceName = TrainConfig.device
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self) -> None:
        check_json_file(self.json)
        if not 0 < self.lowest < self.highest < math.inf:
            raise ConfigError(
                f"--lowest {self.lowest:g} --highest {self.highest:g}: allowed: above 0, and the "
                "highest rate above the lowest"
            )
        if self.num_steps < FEWEST_STEPS:
            raise ConfigError(f"--num_steps {self.num_steps}: allowed: {FEWEST_STEPS} or more")
        self.training(Path())  # refuses what train.py refuses, under the same names

    def training(self, output: Path) -> TrainConfig:
        """The same as flags of launch/train.py.

        Args:
            output: folder for what a run cannot do without.
        """
        known = {item.name for item in fields(TrainConfig)}
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return TrainConfig(**shared, **_UNUSED, max_steps=self.num_steps, output=output)


@contextmanager
def open_test(flags: FindLRConfig) -> Iterator[Session]:
    """A run in motion whose folder goes with it.

    Args:
        flags: as typed.

    Raises:
        MeloFormerError: what a run would be refused for.
    """
    scratch = TemporaryDirectory(prefix="meloformer_find_lr_")
    before_leaving(scratch.cleanup)
    # Each rank has one, and that of the first is the run's: hosts need not share a disk.
    with scratch as folder:
        session = Session(prepare(flags.training(Path(folder) / "run")))
        try:
            yield session
        finally:
            session.close()


def find_lr(session: Session, flags: FindLRConfig) -> RateCurve:
    """Train with a growing rate until the loss turns; collective.

    Args:
        session: from `open_test`.
        flags: the range.

    Returns:
        The same curve on all ranks.
    """
    ranks, engine, progress = session.ranks, session.engine, session.progress
    curve, kinds = RateCurve(num_steps=flags.num_steps), KindTotals(ranks)
    for step, rate in enumerate(np.geomspace(flags.lowest, flags.highest, flags.num_steps), 1):
        session.begin(step)
        engine.set_learning_rate(float(rate))
        micro_batches, counts = read_step(session, step)
        losses = add_up_gradients(session, step, micro_batches, counts, kinds)
        with session.watch(f"the update of step {step}"):
            loss, nats, *_ = kinds.over_ranks(losses)
            grad_norm = engine.grad_norm()
            verdict = session.judge.decide(loss, grad_norm, ranks)
            curve = curve.after(float(rate), loss if verdict.is_good else math.nan)
            if curve.has_turned:
                engine.drop_gradients()
                break
            engine.update()
        progress = progress.after(counts)
        session.report(
            progress,
            micro_batches,
            counts,
            verdict,
            losses=losses,
            nats=nats,
            learning_rate=float(rate),
        )
    return curve
