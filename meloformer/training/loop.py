"""The loop: what happens in a step, in order."""

from collections.abc import Callable

from meloformer.training.accumulation import add_up_gradients, read_step
from meloformer.training.check_gradients import check_gradients
from meloformer.training.nats import KindTotals
from meloformer.training.rollback import roll_back
from meloformer.training.saving import export_model
from meloformer.training.schedule import learning_rate
from meloformer.training.session import Session

Sample = Callable[[Session, int], None]


def train(session: Session, sample: Sample | None = None) -> None:
    """Train from where the session stands to its last step.

    Args:
        session: everything that `open_session` built.
        sample: called after each validation, on all ranks; makes music for the ear.

    Raises:
        TrainingError: on all ranks, when step after step goes wrong and going back does not help.
    """
    config, ranks, engine = session.config, session.ranks, session.engine
    progress = session.progress
    kinds, stopping = KindTotals(ranks), session.stopping
    session.stalls.start()
    session.warming.try_largest(progress.step + 1, session.num_steps)
    check_gradients(session)
    owes_checkpoint = False
    while (step := progress.step + 1) <= session.num_steps and not stopping.is_agreed:
        session.begin(step)
        if stopping.is_agreed:
            break
        rate = learning_rate(step, session.num_steps, config.schedule)
        engine.set_learning_rate(rate)
        micro_batches, counts = read_step(session, step)
        losses = add_up_gradients(session, step, micro_batches, counts, kinds)

        # All ranks decide together: one rank stopping alone leaves the others waiting.
        with session.watch(f"the update of step {step}"):
            loss, nats, words = kinds.over_ranks(losses, stopping.own_word())
            stopping.agree(words)
            grad_norm = engine.grad_norm()
            verdict = session.judge.decide(loss, grad_norm, ranks)
            if verdict.is_good:
                engine.update()
            else:
                engine.drop_gradients()
        progress = progress.after(counts, is_dropped=not verdict.is_good)
        session.report(
            progress,
            micro_batches,
            counts,
            verdict,
            losses=losses,
            nats=nats,
            learning_rate=rate,
        )
        if progress.skipped_in_a_row >= config.bad_steps.max_skipped_steps:
            progress, owes_checkpoint = roll_back(session, progress), False
            continue

        if session.is_due(step, config.validate_every) and not stopping.is_agreed:
            session.validate(step)
            if sample and not stopping.is_agreed:
                sample(session, step)
            stopping.ask()
        # Never in the middle of trouble: there would be no good one left to go back to.
        owes_checkpoint |= session.is_due(step, config.save_every)
        if owes_checkpoint and (not progress.skipped_in_a_row or step == session.num_steps):
            session.save(progress)
            owes_checkpoint = False
    if stopping.is_agreed:
        session.stop(progress)
        return
    session.stalls.at("the end of the run", is_slow=True)
    session.checkpoints.finish()
    folder = export_model(
        engine, config.output, session.model_config, progress.step, config.adapters
    )
    session.metrics.say(f"wrote {folder}")
