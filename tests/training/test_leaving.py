import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS, free_port

WORKER = Path(__file__).with_name("refusal_worker.py")


def two_ranks(*flags: str) -> tuple[list[int], list[str]]:
    """Exit codes and what they said."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *flags],
            cwd=ROOT,
            env=ENVIRONMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=TIME_LIMIT_SECONDS)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


@pytest.mark.distributed
@pytest.mark.parametrize(
    "who", [*(pytest.param(who, marks=pytest.mark.slow) for who in ("all", "0")), "1"]
)
def test_a_refusal_ends_every_rank_with_its_line_once_and_no_traceback(who: str) -> None:
    codes, said = two_ranks("--who", who)
    assert codes == [2, 2], said
    assert "".join(said).count("error: found one thing, allowed another\n") == 1, said
    assert not any("Traceback" in text for text in said), said


@pytest.mark.distributed
@pytest.mark.slow
def test_a_rank_that_waits_where_no_broken_connection_wakes_it_ends_with_the_others() -> None:
    codes, said = two_ranks("--who", "1", "--waits", "asleep")
    assert codes == [2, 2], said
    assert "".join(said).count("error: found one thing, allowed another\n") == 1, said
    assert not any("Traceback" in text for text in said), said


@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_rank_is_named_by_the_other_one() -> None:
    codes, said = two_ranks("--who", "1", "--how", "killed")
    assert codes == [1, -signal.SIGKILL], said
    assert "error: rank 1 has ended, killed perhaps" in said[0], said
    assert not any("Traceback" in text for text in said), said
    # The first rank holds the store, and nobody can look anything up any more.
    codes, said = two_ranks("--who", "0", "--how", "killed")
    assert codes[0] == -signal.SIGKILL and codes[1] != 0, said
    assert "error: the first rank has ended" in said[1], said
