"""A run in motion: the parts that the loop drives, and what it reports and saves."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import torch
from torch import Tensor

from meloformer.batches.batch import Batch
from meloformer.batches.phases import phase_at
from meloformer.batches.stream import TrainStream
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import attention_dtype
from meloformer.model.weights import check_state, find_model_folder, load_weights
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.cards import peak_flops
from meloformer.training.checkpoint import TrainingState
from meloformer.training.engine import Engine
from meloformer.training.graphs import declare_shapes, limit_graphs, warm_up
from meloformer.training.metrics import (
    STEPS_PER_LINE,
    Metrics,
    StepMetrics,
    device_memory,
    duration,
    gpu_utilisation,
    host_memory,
    num_graphs,
)
from meloformer.training.prepare import Prepared
from meloformer.training.run_folder import lock_run
from meloformer.training.saving import check_tokenizer, restore, save_checkpoint
from meloformer.training.step import Clock, Progress, StepCounts
from meloformer.training.validation import validate
from meloformer.training.work import PairRates, step_flops


class Session:
    """A run in motion.

    Args:
        prepared: all settings, checked.

    Raises:
        CheckpointError: weights that do not fit.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.config, self.ranks, self.run = prepared.config, prepared.ranks, prepared.run
        self.num_steps, self.model_config = prepared.num_steps, prepared.model
        self._ds_config, self._data = prepared.ds_config, prepared.data
        self._backend = prepared.backend
        self._precision = attention_dtype(self.config.attention_precision, self.ranks.device)
        self._rule = rule_of(self.model_config.rule)

        self.engine = Engine(
            self._build_model(), self.ranks, prepared.ds_config, self.config.optimizer
        )
        # Before anything of the folder is changed, after everything that may still be refused.
        self._lock: IO[bytes] | None = None
        self.ranks.on_first(self._hold_folder)
        state = prepared.state
        self.progress = Progress()
        if prepared.checkpoint and state:
            restore(self.engine, self.config.output, prepared.checkpoint, state)
            self.progress = Progress(
                step=state.step, tokens_seen=state.tokens_seen, skipped=state.skipped_steps
            )
        self.stream: TrainStream = self._data.train_stream(
            self.ranks, self.progress.step, state.cursor if state else None
        )
        self._validation = self._data.validation_streams(self.ranks)

        self.ranks.on_first(lambda: self.run.save(self.config.output))
        self.metrics = Metrics(
            self.config.output,
            start_step=self.progress.step,
            num_steps=self.num_steps,
            is_first=self.ranks.is_first,
        )
        for note in self.run.notes:
            self.metrics.say(note)
        self._pair_rates = PairRates(self._rule)
        self._shapes = declare_shapes(self._data.plan, self._data.phases)
        self._warm_rows: set[int] = set()
        if self._backend == "flex":
            limit_graphs(self._shapes.num_graphs(self._rule))
        self.clock = Clock()

    def _hold_folder(self) -> None:
        self._lock = lock_run(self.config.output)

    def _build_model(self) -> MuseFormer:
        torch.manual_seed(self.config.seed)
        model = MuseFormer(self.model_config, checkpointing=self.config.checkpointing)
        if self.config.init_from:
            folder = find_model_folder(self.config.init_from)
            check_tokenizer(folder)
            weights = load_weights(folder)
            check_state(model, weights, folder)
            model.load_state_dict(weights)
        return model

    def warm_up(self, step: int) -> None:
        """Compile what a phase will meet before its first step; at other steps do nothing."""
        rows = phase_at(step, self._data.phases).micro_batch_rows
        if self._backend != "flex" or rows in self._warm_rows:
            return
        self._warm_rows.add(rows)
        shapes = self._shapes.of_rows(rows)
        began = time.perf_counter()
        warm_up(self.engine, self.predict, shapes, self._rule)
        self.metrics.say(
            f"compiled attention for {len(shapes.train)} shapes: {num_graphs(self.ranks.device)} "
            f"graphs of {self._shapes.num_graphs(self._rule)} declared, in "
            f"{duration(time.perf_counter() - began)}"
        )
        self.clock.pause()

    def predict(self, batch: Batch) -> Tensor:
        """(B, T, V) logits of a batch on this rank's device."""
        plan = build_plan(batch.layout, self._rule, self._backend, batch.blocks, self._precision)
        return self.engine(batch.ids_BT, batch.layout, plan)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something happens after this step: every so often, and after the last."""
        return step == self.num_steps or (every > 0 and step % every == 0)

    def report(
        self,
        progress: Progress,
        micro_batches: Sequence[Batch],
        counts: StepCounts,
        *,
        loss: float,
        grad_norm: float,
        learning_rate: float,
    ) -> None:
        """Write down a step that is done."""
        self.clock.lap()
        device = self.ranks.device
        seconds = self.clock.step_seconds
        facts = self.stream.facts
        assert facts is not None
        self.metrics.step(
            StepMetrics(
                step=progress.step,
                epoch=facts.epoch,
                phase=self.stream.phase.number if self.config.phases == "on" else None,
                loss=loss if math.isfinite(loss) else None,
                tokens=counts.targets,
                lr=learning_rate,
                grad_norm=grad_norm if math.isfinite(grad_norm) else None,
                tokens_per_second=counts.targets / seconds,
                mfu=self._mfu(progress.step, micro_batches, counts),
                padding=counts.padding,
                data_wait=min(counts.wait_seconds / seconds, 1.0),
                graphs=num_graphs(device),
                memory=device_memory(device),
                memory_host=host_memory(),
                gpu_utilisation=gpu_utilisation(device),
                skipped=progress.skipped,
                eta_seconds=self.clock.pace_seconds * (self.num_steps - progress.step),
            )
        )

    def _mfu(self, step: int, micro_batches: Sequence[Batch], counts: StepCounts) -> float | None:
        peak = peak_flops(self.ranks.device)
        if peak is None:
            return None
        # Counting is slow next to a step, and rows of one length hardly differ from step to step.
        rate = self._pair_rates.of_step(micro_batches, refresh=step % STEPS_PER_LINE == 0)
        flops = step_flops(self.model_config, counts, rate)
        return flops / (self.clock.step_seconds * peak * self.ranks.world_size)

    def validate(self, step: int) -> None:
        """Score the validation pieces with all attributes and with none."""
        self.engine.module.eval()
        num_batches = sum(map(len, self._validation.values()))
        with self.metrics.watch_validation(step, num_batches) as advance:
            scores = {
                told: validate(self.predict, _announced(stream, advance), self.ranks)
                for told, stream in self._validation.items()
            }
        self.engine.module.train()
        self.metrics.validation(step, scores)
        self.clock.pause()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of this moment."""
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
        )
        folder = save_checkpoint(
            self.engine,
            self.config.output,
            state,
            self.model_config,
            keep_last=self.config.keep_last,
        )
        self.metrics.say(f"saved {folder}")
        self.clock.pause()

    def close(self) -> None:
        """Stop data workers, flush files."""
        self.stream.close()
        self.metrics.close()
        if self._lock:
            self._lock.close()


def _announced(batches: Iterable[Batch], advance: Callable[[], None]) -> Iterator[Batch]:
    """The same batches; each is told of when the next one is asked for."""
    for batch in batches:
        yield batch
        advance()
