"""The loop: what happens in a step, in order."""

import math
from collections.abc import Callable

from meloformer.errors import TrainingError
from meloformer.training.loss import share_of_step, token_nats
from meloformer.training.nats import KindTotals
from meloformer.training.saving import export_model
from meloformer.training.schedule import learning_rate
from meloformer.training.session import Session
from meloformer.training.step import count_step

SKIPS_IN_A_ROW = 10

Sample = Callable[[Session, int], None]


def train(session: Session, sample: Sample | None = None) -> None:
    """Train from where the session stands to its last step.

    Args:
        session: everything that `open_session` built.
        sample: called after each validation, on all ranks; makes music for the ear.

    Raises:
        TrainingError: on all ranks, when step after step is not finite.
    """
    config, ranks, engine = session.config, session.ranks, session.engine
    progress = session.progress
    kinds = KindTotals(ranks)
    session.try_largest()
    for step in range(progress.step + 1, session.num_steps + 1):
        session.warm_up(step)
        rate = learning_rate(step, session.num_steps, config.schedule)
        engine.set_learning_rate(rate)

        # One count for all micro-batches of all ranks: how the batch is cut cannot change the
        # gradient.
        micro_batches = session.clock.wait_for(session.stream)
        clock = session.clock
        counts = count_step(micro_batches, clock.wait_seconds, ranks, clock.own_seconds)
        losses = []
        for batch in (batch.to(ranks.device) for batch in micro_batches):
            with session.watch(f"step {step}", batch):
                # No name for the logits: held through the backward pass they would cost memory.
                nats_BT = token_nats(session.predict(batch), batch.targets_BT, fuse=session.fuse)
                kinds.add(nats_BT, batch)
                share = share_of_step(nats_BT, counts.targets, ranks.world_size)
                losses.append(engine.backward(share))

        # All ranks decide together: one rank stopping alone leaves the others waiting.
        with session.watch(f"the update of step {step}"):
            (loss, nats), grad_norm = kinds.over_ranks(losses), engine.grad_norm()
            is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
            if is_finite:
                engine.update()
            else:
                engine.drop_gradients()
        progress = progress.after(counts, is_finite=is_finite)
        session.report(
            progress,
            micro_batches,
            counts,
            loss=loss,
            nats=nats,
            grad_norm=grad_norm,
            learning_rate=rate,
        )
        if progress.skipped_in_a_row == SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{SKIPS_IN_A_ROW} steps in a row were not finite, the last is {step}; lower "
                f"--learning_rate, or look at {config.output}/metrics.jsonl"
            )

        if session.is_due(step, config.validate_every):
            session.validate(step)
            if sample:
                sample(session, step)
        if session.is_due(step, config.save_every):
            session.save(progress)
    session.checkpoints.finish()
    folder = export_model(engine, config.output, session.model_config, progress.step)
    session.metrics.say(f"wrote {folder}")
