import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS, free_port

WORKER = Path(__file__).with_name("refusal_worker.py")


@pytest.mark.distributed
@pytest.mark.parametrize(
    "who", [*(pytest.param(who, marks=pytest.mark.slow) for who in ("all", "0")), "1"]
)
def test_a_refusal_ends_every_rank_with_its_line_once_and_no_traceback(who: str) -> None:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), "--who", who],
            cwd=ROOT,
            env=ENVIRONMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=TIME_LIMIT_SECONDS)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    assert "".join(said).count("error: found one thing, allowed another\n") == 1, said
    assert not any("Traceback" in text for text in said), said
