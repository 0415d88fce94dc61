"""A bridge whose training is told to stop keeps what it has learned."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS, python

pytestmark = pytest.mark.slow


def num_steps(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 0, "SIGTERM")]
)
def test_a_signal_ends_the_run_after_a_step_that_is_saved(
    number: signal.Signals,
    status: int,
    name: str,
    words: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    flags = words(tmp_path / "run", max_steps=100_000, save_every=0, validate_every=0)
    process = subprocess.Popen(
        [*python(), "launch/train_qformer.py", *flags],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + TIME_LIMIT_SECONDS
        while num_steps(tmp_path / "run") < 3 and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == status, said
    steps = num_steps(tmp_path / "run")
    assert f"stopped by {name} after step {steps}; go on with --resume auto" in said
    saved = tmp_path / "run" / "checkpoints" / f"step-{steps}"
    config = json.loads((saved / "model" / "config.json").read_text())
    assert config["step"] == steps
