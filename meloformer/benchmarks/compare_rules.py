"""Train the same small model under several attention rules, on the same rows, in turns.

Every candidate keeps its model and its optimizer in memory and trains a few steps at a time, so
that a machine whose speed drifts hits all alike. The learning rate stays where the warm-up ends:
a decay that follows steps would favour, at equal seconds, whoever has done more of them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.phases import BatchShape, PhaseConfig
from meloformer.batches.plan import PlanConfig
from meloformer.batches.stream import TrainStream, ValidationStream
from meloformer.benchmarks.alternation import in_turn, own_clock
from meloformer.benchmarks.bench_models import build_model, open_rate, sized_config
from meloformer.benchmarks.mixed_training import UNGIVEN_SIZES, Learner, weights_dtype
from meloformer.benchmarks.rule_candidates import (
    DENSE_TWIN,
    GROUPINGS,
    Candidate,
    find_candidates,
)
from meloformer.benchmarks.rule_curves import EMPTY_CURVE, Comparison, Curve
from meloformer.command_line import check_above_zero, check_at_least, ungiven
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import BLOCK_SIZE, BLOCK_SIZES, RULES, num_summaries, rule_of
from meloformer.model.precision import attention_dtype
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.training.config import ModelSize, fuses, newest_shards
from meloformer.training.graphs import Shapes, limit_graphs
from meloformer.training.loss import step_loss
from meloformer.training.prepare import backend_of
from meloformer.training.ranks import Ranks
from meloformer.training.schedule import ScheduleConfig, learning_rate
from meloformer.training.validation import validate

DEFAULT_RULE = MuseFormerConfig.rule

UNGIVEN = {
    "cuda": UNGIVEN_SIZES["cuda"] | {"batch_size": 6},
    "cpu": UNGIVEN_SIZES["cpu"] | {"batch_size": 2},
}


@dataclass(frozen=True, kw_only=True)
class CompareRulesConfig:
    """Flags of launch/tools/compare_rules.py.

    Args:
        data: shard folder; the newest of data_shards/ if not given.
        minutes: of the whole comparison, once everything is compiled; at least one slice is done.
        seeds: runs of each candidate, each with its own rows, prefixes and first weights.
        rules: presets, groupings (near, split_1_3, split_1_2_far_1), paths of .json files with head
            groups, and dense_twin, which has no summaries; commas or spaces between them.
        model_size: small on CUDA and tiny elsewhere if not given; with as many more heads as the
            rules need, the same for all.
        max_seq_len: tokens of a row, packed full; longer on CUDA than elsewhere if not given.
        batch_size: rows of an optimizer step; more on CUDA than elsewhere if not given.
        block_size: tokens along each side of a block of the attention plan, on CUDA.
        learning_rate: constant after the warm-up.
        warmup_steps: optimizer steps of linear rise.
        slice_steps: optimizer steps of a candidate before the next has its turn.
        validate_every: optimizer steps between validations, in whole slices.
        validation_rows: rows of a validation; the same ones every time.
        device: where to compute.
    """

    data: str | None = None
    minutes: float = 60.0
    seeds: int = 3
    rules: tuple[str, ...] = (*RULES, *GROUPINGS, DENSE_TWIN)
    model_size: ModelSize | None = None
    max_seq_len: int | None = None
    batch_size: int | None = None
    block_size: int = BLOCK_SIZE
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    slice_steps: int = 5
    validate_every: int = 50
    validation_rows: int = 32
    device: DeviceName = "auto"

    def __post_init__(self) -> None:
        lowest = {
            "seeds": 1,
            "max_seq_len": 16,
            "batch_size": 1,
            "warmup_steps": 0,
            "slice_steps": 1,
            "validate_every": 1,
            "validation_rows": 1,
        }
        check_at_least(self, lowest)
        check_above_zero(self, "minutes")
        if self.block_size not in BLOCK_SIZES:
            allowed_sizes = " or ".join(map(str, BLOCK_SIZES))
            raise ConfigError(f"--block_size {self.block_size}: allowed: {allowed_sizes}")
        if self.validate_every % self.slice_steps:
            raise ConfigError(
                f"--validate_every {self.validate_every}: allowed: multiples of --slice_steps "
                f"{self.slice_steps}"
            )
        # Refuses a rate that is none.
        ScheduleConfig(learning_rate=self.learning_rate)


class Race:
    """All candidates with all seeds, ready to train.

    Args:
        config: flags.

    Raises:
        ConfigError: unknown rules, or heads that cannot be shared out.
        ShardError: the data are no shards.
    """

    def __init__(self, config: CompareRulesConfig) -> None:
        device_type = choose_device(config.device)
        self.config = replace(
            config,
            data=config.data or str(newest_shards()),
            **ungiven(config, UNGIVEN, device_type),
        )
        self.device = torch.device(device_type)
        self.backend = backend_of(self.device)
        self.fuse = fuses("auto", self.backend, zero_stage=0)
        self.dtype = weights_dtype(self.device)
        self.candidates = find_candidates(config.rules)
        self.models = {c.name: self._model_config(c) for c in self.candidates}
        assert self.config.data is not None
        shards = ShardFolder.open(self.config.data)
        train = shards.split("train")
        self._streams = [self._stream(train, seed) for seed in range(config.seeds)]
        # For the warm-up, which takes nothing from a stream that is trained on.
        self._first = next(self._stream(train, 0))[0]
        validation = list(self._validation_stream(shards.split("valid")))

        head_width = self.models[self.candidates[0].name].head_width
        precision = attention_dtype("auto", self.device, head_width=head_width)
        if self.backend == "flex":
            limit_graphs(sum(map(self._num_graphs, self.candidates)))
        self.trainees = [
            [_Trainee(self, candidate, seed, precision) for candidate in self.candidates]
            for seed in range(config.seeds)
        ]
        self._validation = {
            candidate.name: [self._prepared(candidate, batch) for batch in validation]
            for candidate in self.candidates
        }
        self._targets = [0] * config.seeds

    def run(self) -> Iterator[Comparison]:
        """Train until the time is over; yields what is known after each validation."""
        self._warm_up()
        curves = {c.name: [EMPTY_CURVE] * self.config.seeds for c in self.candidates}
        began, step, turn_seconds = time.perf_counter(), 0, 0.0
        while True:
            elapsed_seconds = time.perf_counter() - began
            is_over = step > 0 and elapsed_seconds + turn_seconds > 60 * self.config.minutes
            if is_over or step % self.config.validate_every == 0:
                self._validate(step, curves)
            if is_over or (step and step % self.config.validate_every == 0):
                yield Comparison(
                    curves={name: tuple(of_name) for name, of_name in curves.items()},
                    targets=tuple(self._targets),
                )
            if is_over:
                return
            turn_began = time.perf_counter()
            self._turn(step)
            step += self.config.slice_steps
            turn_seconds = time.perf_counter() - turn_began

    def _turn(self, step: int) -> None:
        """One slice of every candidate and seed."""
        for seed, trainees in enumerate(self.trainees):
            batches = [next(self._streams[seed])[0] for _ in range(self.config.slice_steps)]
            self._targets[seed] += sum(batch.num_targets for batch in batches)
            for trainee in in_turn(trainees, step // self.config.slice_steps):
                trainee.train(batches, step)

    def _validate(self, step: int, curves: dict[str, list[Curve]]) -> None:
        ranks = Ranks(rank=0, local_rank=0, world_size=1, device=self.device)
        for seed, trainees in enumerate(self.trainees):
            for trainee in trainees:
                name = trainee.candidate.name
                nats = validate(trainee.predict, self._validation[name], ranks)
                curves[name][seed] = curves[name][seed].after(step, trainee.seconds, nats.per_note)

    def _warm_up(self) -> None:
        """Compile, and touch all memory once, before any clock runs; weights stay as they are."""
        for trainees in self.trainees[:1]:
            for trainee in trainees:
                trainee.backward(self._prepared(trainee.candidate, self._first))
                trainee.learner.drop_gradients()
                with torch.no_grad():
                    trainee.predict(self._validation[trainee.candidate.name][0].to(self.device))

    def _prepared(self, candidate: Candidate, batch: Batch) -> Batch:
        return candidate.prepare(batch, self.backend, self.config.block_size)

    def _num_graphs(self, candidate: Candidate) -> int:
        """In training and in validation; the twin's attention is sparse in pieces, and compiled."""
        assert self.config.max_seq_len is not None and self.config.batch_size is not None
        T = self.config.max_seq_len
        shape = BatchShape(self.config.batch_size, T, num_summaries(T))
        return Shapes(train=(shape,), score=(shape,)).num_graphs(
            rule_of(candidate.rule),
            summaries=candidate.summaries,
            opened=self.models[candidate.name].num_open_layers > 0,
            fuse=self.fuse,
        )

    def _model_config(self, candidate: Candidate) -> MuseFormerConfig:
        assert self.config.model_size is not None and self.config.max_seq_len is not None
        size = SIZES[self.config.model_size]
        parts = [sum(group.share for group in rule_of(c.rule)) for c in self.candidates]
        num_kv_heads = math.lcm(size.num_kv_heads, *parts)
        # The heads first: the size's own need not serve the rule.
        config = replace(
            sized_config(self.config.model_size, self.config.max_seq_len),
            num_kv_heads=num_kv_heads,
            num_heads=num_kv_heads * size.num_heads // size.num_kv_heads,
        )
        return replace(config, rule=candidate.rule, summaries=candidate.summaries)

    def _plan(self, seed: int) -> PlanConfig:
        assert self.config.max_seq_len is not None and self.config.batch_size is not None
        # Full rows of one length: one shape, no padding, the same work for every step.
        return PlanConfig(
            max_seq_len=self.config.max_seq_len,
            collate="pack",
            global_batch=self.config.batch_size,
            seed=seed,
        )

    def _stream(self, index: SplitIndex, seed: int) -> TrainStream:
        plan = self._plan(seed)
        phases = PhaseConfig(phases="off", micro_batch_rows=plan.global_batch, num_workers=0)
        # All candidates read the same rows, the dense twin without their open summaries.
        rate = max(map(open_rate, self.models.values()))
        return TrainStream(Collator(index=index, seed=seed, open_summary_rate=rate), plan, phases)

    def _validation_stream(self, index: SplitIndex) -> ValidationStream:
        plan = self._plan(0)
        return ValidationStream(
            Collator(index=index, attributes=ALL_ATTRIBUTES),
            plan,
            micro_batch_rows=plan.global_batch,
            max_rows=self.config.validation_rows,
        )


class _Trainee:
    """One candidate with one seed: learner and clock."""

    def __init__(
        self, race: Race, candidate: Candidate, seed: int, precision: torch.dtype | None
    ) -> None:
        self.candidate, self.seconds = candidate, 0.0
        self._device, self._backend, self._precision = race.device, race.backend, precision
        self._rule, self._config = rule_of(candidate.rule), race.config
        self._fuse = race.fuse
        master = build_model(race.models[candidate.name], fuse=race.fuse, seed=seed)
        self.learner = Learner(master, race.device, race.dtype)

    def predict(self, batch: Batch) -> Tensor:
        """(B, T, V) logits of a batch on the device."""
        plan = build_plan(batch.layout, self._rule, self._backend, batch.blocks, self._precision)
        return self.learner.model(batch.ids_BT, batch.layout, plan, NoisedOwn.of(batch.open_seeds))

    def train(self, batches: Sequence[Batch], step: int) -> None:
        """Train on batches, one a step; only this counts on the clock.

        Block lists are made beforehand: in a run that is the work of the data workers.
        """
        block_size = self._config.block_size
        prepared = [self.candidate.prepare(batch, self._backend, block_size) for batch in batches]
        began = own_clock(self._device)
        for number, batch in enumerate(prepared, start=step + 1):
            self.backward(batch)
            self.learner.step(self._rate(number))
        self.seconds += own_clock(self._device) - began

    def backward(self, batch: Batch) -> None:
        """Gradients of the mean loss of a batch."""
        batch = batch.to(self._device)
        logits_BTV = self.predict(batch)
        step_loss(logits_BTV, batch.targets_BT, batch.num_targets, 1, fuse=self._fuse).backward()

    def _rate(self, step: int) -> float:
        """It rises, and stays where the rise ends."""
        schedule = ScheduleConfig(
            learning_rate=self._config.learning_rate,
            warmup_steps=self._config.warmup_steps,
            min_learning_rate_ratio=1.0,
        )
        return learning_rate(step, max(step, self._config.warmup_steps), schedule)
