"""Rows of the table of faults: ranks and data workers that stand still, or workers that die."""

import re

from tests.faults.rows import NUM_STEPS, SAVE_EVERY, Drill, FaultRow, Run, Strike, fault
from tests.training.launching import deepspeed, free_port, torchrun

# Long enough for a step on a busy machine.
STALL_SECONDS = 30
WATCHED = ("--stall_timeout", str(STALL_SECONDS))
# More than what is said of a stall waits for: both ranks, and the last words.
LATE_SECONDS = 60
DATA_SECONDS = 6
NUM_WORKERS = 2


@fault("SIGSTOP of the second rank, brought back by torchrun --max_restarts", ranks=2)
def stop_second_rank(drill: Drill) -> FaultRow:
    """It never answers again; the other rank says so and ends."""
    return _stopped_under_torchrun(drill, 1)


@fault("SIGSTOP of the first rank, brought back by torchrun --max_restarts", ranks=2)
def stop_first_rank(drill: Drill) -> FaultRow:
    """Whoever is left speaks for the run."""
    return _stopped_under_torchrun(drill, 0)


@fault("SIGSTOP of the first rank, which holds the store, under the deepspeed launcher", ranks=2)
def stop_holder_of_the_store(drill: Drill) -> FaultRow:
    """No rank can ask another one any more; started again by hand."""
    with drill.start(2, *WATCHED, launcher=deepspeed(2, free_port())) as run:
        struck = _stop_rank(drill, run, 0)
        detected, complaints = _named(run, struck, 0, "and with it the store of the ranks")
        # Resumed before, the first rank would go on with the other one until that ends.
        run.wait_until(lambda: 1 not in run.ranks(), "end of the second rank")
        # Whether this launcher ends a process that is stopped is its own affair.
        for process in run.ranks().values():
            process.resume()
        run.wait_for_end()
    return drill.go_on(struck, *WATCHED, detected_s=detected, complaints=complaints)


@fault("a rank that sleeps in its step, brought back by torchrun --max_restarts", ranks=2)
def sleep_in_a_step(drill: Drill) -> FaultRow:
    """It still answers, and is named by where it stands."""
    step = drill.draws.randrange(SAVE_EVERY + 2, NUM_STEPS - 1)
    launcher = [
        *torchrun(2),
        "--max_restarts",
        "1",
        "tests/faults/sleeping_rank.py",
        "1",
        str(step),
    ]
    with drill.start(2, *WATCHED, launcher=launcher) as run:
        run.wait_for_step(step - 1)
        struck = run.strike()
        where = f"at the count of step {step}, in .*count_step .sleeping_rank.py"
        detected, complaints = _named(run, struck, 1, where)
        return drill.finish(run, struck, detected_s=detected, complaints=complaints)


@fault("SIGKILL of a data worker", ranks=2)
def kill_a_data_worker(drill: Drill) -> FaultRow:
    """The run goes on in place."""
    return _strike_a_data_worker(drill, "kill", "was ended by SIGKILL")


@fault("SIGSTOP of a data worker", ranks=2)
def stop_a_data_worker(drill: Drill) -> FaultRow:
    """The run goes on in place, once a batch was waited for too long."""
    return _strike_a_data_worker(drill, "suspend", "is stopped")


ROWS = [
    stop_second_rank,
    stop_first_rank,
    stop_holder_of_the_store,
    sleep_in_a_step,
    kill_a_data_worker,
    stop_a_data_worker,
]


def _stopped_under_torchrun(drill: Drill, rank: int) -> FaultRow:
    launcher = [*torchrun(2), "--max_restarts", "1"]
    with drill.start(2, *WATCHED, launcher=launcher) as run:
        struck = _stop_rank(drill, run, rank)
        detected, complaints = _named(run, struck, rank, "it does not answer any more .*is stopped")
        return drill.finish(run, struck, detected_s=detected, complaints=complaints)


def _stop_rank(drill: Drill, run: Run, rank: int) -> Strike:
    """After the first checkpoint and before the last step."""
    run.wait_for_step(drill.draws.randrange(SAVE_EVERY + 1, NUM_STEPS - 1))
    run.ranks()[rank].suspend()
    return run.strike()


def _named(run: Run, struck: Strike, rank: int, how: str) -> tuple[float, list[str]]:
    """Wait until the rank is named; seconds since the fault, and what is wrong about it."""
    words = f"error: nothing moved for .*: rank {rank} stalls.*{how}"
    run.wait_for_words(words, since=struck.num_said)
    seconds = struck.seconds()
    stacks = sorted((run.folder / "stalls" / "start-1").glob("rank-*.txt"))
    logged = any(f"rank {rank} stalls" in line for line in run.train_log()[-1:])
    return seconds, [
        *([] if seconds < STALL_SECONDS + LATE_SECONDS else [f"named after {seconds:.0f} s"]),
        *([] if logged else [f"not on the last line of train.log: {run.train_log()[-1:]}"]),
        *([] if stacks else ["no stacks"]),
    ]


def _strike_a_data_worker(drill: Drill, how: str, words: str) -> FaultRow:
    patience = (*WATCHED, "--data_timeout", str(DATA_SECONDS))
    with drill.start(2, *patience, num_workers=NUM_WORKERS) as run:
        run.wait_for_step(drill.draws.randrange(2, NUM_STEPS // 2))
        rank = drill.draws.randrange(2)
        victim = run.children(rank)[0]
        getattr(victim, how)()
        struck = run.strike()
        line = f"data worker . .pid {victim.pid}. {words}, .*started anew"
        run.wait_until(
            lambda: any(re.search(line, said) for said in run.train_log()),
            "word of a lost data worker in train.log",
        )
        detected = struck.seconds()
        done = max(run.losses())
        run.wait_for_step(done + 1)
        recovered = struck.seconds()
        run.wait_for_end()
        complaints = ["the worker is still there"] if victim.is_running() else []
        return drill.judge(
            run,
            struck,
            detected_s=detected,
            recovered_s=recovered,
            complaints=complaints,
            num_workers=NUM_WORKERS,
        )
