"""A run in motion: the parts that the loop drives, and what it reports and saves."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.phases import BatchShape
from meloformer.batches.stream import TrainStream, ValidationStream
from meloformer.errors import ConfigError
from meloformer.interrupts import begin_work
from meloformer.model.attention import build_plan
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.bad_steps import Judge, Verdict
from meloformer.training.building import attention_precision, build_model, describe_trained_part
from meloformer.training.checkpoint import TrainingState
from meloformer.training.compile_ahead import CompileSpec
from meloformer.training.compile_cache import use_compile_cache
from meloformer.training.config import fuses
from meloformer.training.ema import AVERAGED_SCORES
from meloformer.training.engine import Engine
from meloformer.training.graphs import declare_graphs
from meloformer.training.metrics_writer import MetricsWriter
from meloformer.training.nats import Nats
from meloformer.training.out_of_memory import explain_out_of_memory, remedy
from meloformer.training.phase_meter import PhaseMeter
from meloformer.training.prepare import Prepared
from meloformer.training.room import Room
from meloformer.training.run_folder import lock_run
from meloformer.training.saving import Checkpoints, restore
from meloformer.training.stalls import StallWatch
from meloformer.training.step import Clock, Progress, StepCounts
from meloformer.training.step_meter import StepMeter
from meloformer.training.stopping import Stopping
from meloformer.training.validation import validate
from meloformer.training.wandb_run import WandbRun
from meloformer.training.warming import Warming


class Session:
    """A run in motion.

    Args:
        prepared: all settings, checked.

    Raises:
        CheckpointError: weights that do not fit.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._began: float | None = time.perf_counter()
        self.config, self.ranks, self.run = prepared.config, prepared.ranks, prepared.run
        self.num_steps, self.model_config = prepared.num_steps, prepared.model
        self._ds_config, self._data = prepared.ds_config, prepared.data
        self._backend = prepared.backend
        begin_work()
        self.stopping = Stopping(self.ranks)
        stall_timeout = self.config.stalls.stall_timeout
        self.stalls = StallWatch(
            self.ranks, stall_timeout, self.config.output, len(self.run.starts)
        )
        notes = []
        if self._backend == "flex":
            notes.append(use_compile_cache(self.config.compile_cache, self.ranks.device))
        self._precision = attention_precision(self.config, self.model_config, self.ranks, self.run)
        self._rule = rule_of(self.model_config.rule)

        self._room: Room | None = None
        with self.watch("the building of the model"):
            self.engine = Engine(
                self.build_model(),
                self.ranks,
                prepared.ds_config,
                self.config.optimizer,
                ema=self.config.ema,
            )
        notes += describe_trained_part(self.engine.module, self.config)
        # Before anything of the folder is changed, after everything that may still be refused.
        self._lock: IO[bytes] | None = None
        self.ranks.on_first(self._hold_folder)
        state = prepared.state
        self.progress = Progress()
        if prepared.checkpoint and state:
            restore(self.engine, self.config.output, prepared.checkpoint, state)
            self.progress = Progress.of(state)
        self._saved_step = self.progress.step
        self.judge = Judge(self.config.bad_steps, state.recent_steps if state else ())
        self.rolled_back: dict[str, Any] | None = None
        self._room = Room(self._spec(), self.engine)
        self.stream: TrainStream = self._data.train_stream(
            self.ranks, self.progress.step, state.cursor if state else None
        )
        self._validation = self._data.validation_streams(self.ranks)

        self.ranks.on_first(lambda: self.run.save(self.config.output))
        self.metrics = MetricsWriter(
            self.config.output,
            start_step=self.progress.step,
            num_steps=self.num_steps,
            is_first=self.ranks.is_first,
            moment=lambda: self.stalls.moment,
        )
        self.ranks.on_first(self._follow)
        for note in [*self.run.notes, *notes]:
            self.metrics.say(note)
        self.checkpoints = Checkpoints(
            self.engine,
            self.config.output,
            self.model_config,
            keep_last=self.config.keep_last,
            keep_every=self.config.keep_every,
            is_background=self.config.background_save == "on",
            tell=lambda outcome: self.metrics.say(outcome.line()),
            adapters=self.config.adapters,
        )
        self.graphs = declare_graphs(
            self._data.plan,
            self._data.phases,
            self.model_config,
            model=self.engine.module,
            fuse=self.fuse,
            is_compiled=self._backend == "flex",
        )
        self.run.starts[-1]["num_graphs"] = self.graphs.num_graphs
        self.clock = Clock(self.ranks.device)
        self.warming = self._warming()
        self.phases = PhaseMeter(
            self._data.phases, self.num_steps, self.ranks, say=self.metrics.say
        )
        self._meter = StepMeter(self.model_config, self.ranks, self.num_steps, self.clock)

    def _follow(self) -> None:
        if project := self.config.wandb:
            settings = self.config.to_json()
            wandb_run = WandbRun(project, self.config.output, self.run.run_id, settings)
            self.metrics.follow(wandb_run)

    def _hold_folder(self) -> None:
        self._lock = lock_run(self.config.output)

    @property
    def fuse(self) -> bool:
        """Whether the pointwise parts and the loss are compiled."""
        stage = self._ds_config["zero_optimization"]["stage"]
        return fuses(self.config.fuse, self._backend, stage)

    def build_model(self) -> MuseFormer:
        """The model as it is before the first step, on the CPU."""
        return build_model(self.config, self.model_config, fuse=self.fuse)

    def _spec(self) -> CompileSpec:
        return CompileSpec(
            model=self.model_config,
            device=self.ranks.device,
            backend=self._backend,
            is_bf16=self.engine.is_bf16,
            precision=self._precision,
            checkpointing=self.config.checkpointing,
            fuse=self.fuse,
            block_size=self.config.block_size,
        )

    def _warming(self) -> Warming:
        return Warming(
            self._spec(),
            self.config,
            self.engine,
            self.graphs,
            self._data.phases,
            self.clock,
            predict=self.predict,
            watch=self.watch,
            say=self.metrics.say,
            stopping=self.stopping,
        )

    def begin(self, step: int) -> None:
        """What comes before a step."""
        self.stalls.at(f"the start of step {step}", is_slow=True)
        if self.phases.enter(step):
            self.clock.pause()
        self.warming.warm_up(step)
        if self._began is not None:
            # What comes before the first step of a start takes long, and no sum of a step is made.
            self.stopping.ask()

    @contextmanager
    def watch(self, moment: str, batch: Batch | None = None) -> Iterator[None]:
        """Held around what needs memory: says what has run out, and of which graph too many came.

        Args:
            moment: what is done, for messages.
            batch: whose forward and backward pass it is; None for what is no pass of a batch.

        Raises:
            OutOfMemoryError: out of memory.
            TrainingError: the batch does not keep to the graph budget.
        """
        self.stalls.at(moment)
        shape = None
        if batch is not None:
            rows, tokens = batch.ids_BT.shape
            shape = BatchShape(rows, tokens, batch.layout.piece_BS.shape[1])
        budget = nullcontext() if batch is None else self.graphs.watch(batch)
        with explain_out_of_memory(self.ranks, moment, shape, partial(self._remedy, shape)), budget:
            yield

    def _remedy(self, shape: BatchShape | None) -> str:
        return self._room.remedy(shape) if self._room else remedy(self.model_config, None, 0)

    def predict(self, batch: Batch, model: Callable[..., Tensor] | None = None) -> Tensor:
        """(B, T, V) logits of a batch on this rank's device; the engine's if of no other model."""
        plan = build_plan(batch.layout, self._rule, self._backend, batch.blocks, self._precision)
        start = NoisedOwn.of(batch.open_seeds)
        with self.clock.forward() if torch.is_grad_enabled() else nullcontext():
            return (model or self.engine)(batch.ids_BT, batch.layout, plan, start)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something happens after this step: every so often, and after the last."""
        return step == self.num_steps or (every > 0 and step % every == 0)

    def report(
        self,
        progress: Progress,
        micro_batches: Sequence[Batch],
        counts: StepCounts,
        verdict: Verdict,
        *,
        losses: Sequence[Tensor],
        nats: Nats,
        learning_rate: float,
    ) -> None:
        """Write down a step that is done."""
        self.clock.lap()
        self.checkpoints.poll()
        facts = self.stream.facts
        assert facts is not None
        dropped = None
        if verdict.objection is not None:
            keys = self.stream.piece_keys()
            dropped = verdict.describe(micro_batches, losses, keys, counts.targets, self.ranks)
            self.metrics.say(f"step {progress.step} is dropped: {verdict.objection}")
        metrics = self._meter.measure(
            progress,
            micro_batches,
            counts,
            epoch=facts.epoch,
            phase=self.stream.phase.number if self.config.phases == "on" else None,
            loss=verdict.loss,
            nats=nats,
            grad_norm=verdict.grad_norm,
            learning_rate=learning_rate,
            graphs=self.graphs.num_compiled if self._backend == "flex" else None,
            failed_saves=self.checkpoints.num_failed,
        )
        metrics = replace(metrics, memory=self.phases.peak_of_start(metrics.memory))
        self.metrics.step(replace(metrics, dropped=dropped, rolled_back=self.rolled_back))
        self.rolled_back = None
        if self.phases.leave(progress.step, metrics.step_seconds):
            self._note({"phases": self.phases.to_json()})
            self.clock.pause()
        if self._began is not None:
            first = self.warming.first_step(time.perf_counter() - self._began)
            self._note(first.facts())
            self.metrics.say(first.line())
            self._began = None

    def return_to(self, checkpoint: Path, state: TrainingState) -> None:
        """Take weights, optimizer and step of a checkpoint; the data goes on from where it is."""
        self.stalls.at("the return to a checkpoint", is_slow=True)
        place = self.stream.state()
        self.stream.close()
        restore(self.engine, self.config.output, checkpoint, state)
        self.stream = self._data.train_stream(self.ranks, state.step, place)
        self.judge.restore(state.recent_steps)
        self._saved_step = state.step
        self.clock.pause()

    def _note(self, facts: dict[str, Any]) -> None:
        """Write facts of this start into run.json."""
        self.run = replace(self.run, starts=[*self.run.starts[:-1], self.run.starts[-1] | facts])
        try:
            self.ranks.on_first(lambda: self.run.save(self.config.output))
        except ConfigError as error:  # a full disk ends no run
            self.metrics.say(f"run.json lacks {', '.join(facts)}: {error}")

    def _score(self, step: int, batch: Batch) -> Tensor:
        with self.watch(f"the validation after step {step}", batch):
            return self.predict(batch)

    def _to_score(self) -> Iterator[tuple[str, ValidationStream]]:
        """The validation pieces by what is told of them; then again, with averaged weights."""
        yield from self._validation.items()
        if self.engine.has_average:
            with self.engine.averaged_weights():
                for told, pieces in self._validation.items():
                    yield f"{AVERAGED_SCORES}{told}", pieces

    def validate(self, step: int) -> None:
        """Score the validation pieces with all attributes and with none."""
        self.engine.module.eval()
        num_batches = sum(map(len, self._validation.values())) * (1 + self.engine.has_average)
        with self.metrics.watch_validation(step, num_batches) as advance:
            scores = {
                told: validate(
                    partial(self._score, step),
                    _announced(stream, advance, self.stopping.ask),
                    self.ranks,
                )
                for told, stream in self._to_score()
            }
        self.engine.module.train()
        if self.stopping.is_agreed:
            self.metrics.say(f"the validation after step {step} is left out: the run stops")
            return
        self.metrics.validation(step, scores)
        self.clock.pause()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of this moment."""
        self.stalls.at(f"the save after step {progress.step}", is_slow=True)
        state = TrainingState(
            run_id=self.run.run_id,
            step=progress.step,
            cursor=self.stream.state(),
            tokens_seen=progress.tokens_seen,
            skipped_steps=progress.skipped,
            world_size=self.ranks.world_size,
            ds_config=self._ds_config,
            tokenizer_fingerprint=fingerprint(),
            settings=self.config.to_json(),
            setbacks=progress.setbacks,
            recent_steps=self.judge.state(),
        )
        self.checkpoints.save(state)
        self._saved_step = progress.step
        self.clock.pause()

    def stop(self, progress: Progress) -> None:
        """End a run that was asked to stop, with a checkpoint of this moment.

        Raises:
            CheckpointError: on all ranks, when it cannot be written.
        """
        if progress.step != self._saved_step:
            self.save(progress)
        self.stalls.at("the last save", is_slow=True)
        self.checkpoints.finish()
        by = f"stopped by {self.stopping.name}"
        if self._began is None:
            self.metrics.say(f"saved step {progress.step}, {by}")
        else:
            self.metrics.say(f"{by} before step {progress.step + 1}, nothing to save")

    def close(self) -> None:
        """Stop data workers, flush files."""
        self.stopping.close()
        self.stream.close()
        self.checkpoints.close()
        self._meter.close()
        self.metrics.close()
        if self._lock:
            self._lock.close()
        self.stalls.close()


def _announced(
    batches: Iterable[Batch], advance: Callable[[], None], is_over: Callable[[], bool]
) -> Iterator[Batch]:
    """The same batches until it is over; each is told of when the next one is asked for."""
    for batch in batches:
        if is_over():
            return
        yield batch
        advance()
