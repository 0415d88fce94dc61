"""Going back: where step after step is dropped, weights are no longer worth training on.

The run takes weights, optimizer and step number of its last good checkpoint, and goes on with the
data that comes after the dropped steps: the same batches would bring the same trouble.
"""

from pathlib import Path
from typing import Any

from meloformer.errors import CheckpointError, TrainingError
from meloformer.training.checkpoint import TrainingState, check_files, is_good, step_folders
from meloformer.training.session import Session
from meloformer.training.step import Progress


def roll_back(session: Session, progress: Progress) -> Progress:
    """Go back to the last good checkpoint; collective.

    Args:
        session: the run, after a dropped step.
        progress: after that step.

    Returns:
        Progress to go on from.

    Raises:
        TrainingError: there is nothing to go back to, or the run has been back and has come no
            further since.
    """
    output, ranks = session.config.output, session.ranks
    trouble = (
        f"{progress.skipped_in_a_row} steps in a row were dropped, the last is {progress.step}"
    )
    remedy = f"lower --learning_rate, and look at the dropped steps in {output}/metrics.jsonl"
    if progress.step <= progress.rolled_back_from:
        raise TrainingError(
            f"{trouble}, and the run has already gone back once, after step "
            f"{progress.rolled_back_from}; {remedy}"
        )
    session.stalls.at("the return to a checkpoint", is_slow=True)
    session.checkpoints.settle()
    found = ranks.on_first(lambda: last_good(output))
    if found is None:
        raise TrainingError(
            f"{trouble}, and found no checkpoint of a good step to go back to; {remedy}, or set "
            "--save_every lower"
        )
    checkpoint, state = found
    session.return_to(checkpoint, state)
    session.rolled_back = {
        "from_step": progress.step,
        "to_step": state.step,
        "dropped": dropped_steps(session.metrics.rewind(state.step)),
    }
    session.metrics.say(
        f"rolled back to step {state.step}, {checkpoint}: {trouble}; the data goes on after them"
    )
    return progress.back_to(state)


def last_good(output: Path) -> tuple[Path, TrainingState] | None:
    """The newest checkpoint that verifies and whose last step was taken; None if there is none."""
    for folder in reversed(step_folders(output)):
        try:
            check_files(folder)
            if is_good(folder):
                return folder, TrainingState.load(folder)
        except CheckpointError:
            continue
    return None


def dropped_steps(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dropped steps that some lines of metrics.jsonl tell of, each with its number."""
    found = []
    for line in lines:
        if line["rolled_back"]:
            found += line["rolled_back"]["dropped"]
        if line["dropped"]:
            found.append({"step": line["step"], **line["dropped"]})
    return found
