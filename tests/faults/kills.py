"""Rows of the table of faults: processes that are killed, and runs that come back."""

from collections.abc import Callable

from tests.faults.rows import NUM_STEPS, SAVE_EVERY, Drill, FaultRow, fault
from tests.faults.runs import Run, Strike
from tests.training.launching import deepspeed, free_port, torchrun


@fault("SIGKILL of one rank at a random step", ranks=2)
def kill_at_a_random_step(drill: Drill) -> FaultRow:
    """Killed under torchrun, which ends; started again by hand."""
    return _kill_and_start_again(drill, 2, torchrun, "SIGKILL")


@fault("SIGKILL of one of four ranks at a random step", ranks=4)
def kill_one_of_four(drill: Drill) -> FaultRow:
    """The same on four ranks."""
    return _kill_and_start_again(drill, 4, torchrun, "SIGKILL")


@fault("SIGKILL of one rank at a random step, under the deepspeed launcher", ranks=2)
def kill_under_deepspeed(drill: Drill) -> FaultRow:
    """The launcher ends the other rank and itself; started again by hand."""

    def launcher(num_ranks: int) -> list[str]:
        return deepspeed(num_ranks, free_port())

    # The launcher looks once a second, and names the rank that it finds ended first: the other one
    # may have ended since then too, and has said why.
    reason = r"exits with return code = -9|rank \d has ended"
    return _kill_and_start_again(drill, 2, launcher, reason)


@fault("SIGKILL of one rank in the first step", ranks=2)
def kill_in_the_first_step(drill: Drill) -> FaultRow:
    """Nothing is saved yet: the run starts anew in the same folder."""
    with drill.start(2) as run:
        victim = drill.draws.randrange(2)
        # The last that is said before the first step.
        run.wait_for_words("--check_gradients: .* allowed")
        run.ranks()[victim].kill()
        struck = run.strike()
        complaints = [f"step {struck.step} was already done"] if struck.step else []
        detected, found = run.end_by_fault(struck, "SIGKILL")
    return drill.go_on(struck, detected_s=detected, complaints=[*complaints, *found])


@fault("SIGKILL of one rank, brought back by torchrun --max_restarts", ranks=2)
def torchrun_brings_it_back(drill: Drill) -> FaultRow:
    """Nobody starts anything again."""
    with drill.start(2, launcher=[*torchrun(2), "--max_restarts", "2"]) as run:
        struck = _kill_at_a_random_step(drill, run, 2)
        run.wait_for_words("failed .exitcode: -9", since=struck.num_said)
        return drill.finish(run, struck, detected_s=struck.seconds())


def _kill_and_start_again(
    drill: Drill, num_ranks: int, launcher: Callable[[int], list[str]], reason: str
) -> FaultRow:
    with drill.start(num_ranks, launcher=launcher(num_ranks)) as run:
        struck = _kill_at_a_random_step(drill, run, num_ranks)
        detected, complaints = run.end_by_fault(struck, reason)
    return drill.go_on(
        struck,
        num_ranks=num_ranks,
        launcher=launcher(num_ranks),
        detected_s=detected,
        complaints=complaints,
    )


def _kill_at_a_random_step(drill: Drill, run: Run, num_ranks: int) -> Strike:
    """After the first checkpoint and before the last step."""
    step = drill.draws.randrange(SAVE_EVERY + 1, NUM_STEPS - 1)
    victim = drill.draws.randrange(num_ranks)
    run.wait_for_step(step)
    run.ranks()[victim].kill()
    return run.strike()


ROWS = [
    kill_at_a_random_step,
    kill_in_the_first_step,
    kill_one_of_four,
    kill_under_deepspeed,
    torchrun_brings_it_back,
]
