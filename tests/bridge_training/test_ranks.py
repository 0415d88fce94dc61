"""Two ranks and every way to start them: the same losses as one process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.launching import BIN, deepspeed, free_port, python, run, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

Words = Callable[..., list[str]]
LIMIT_SECONDS = 1200


def train(command: list[str], flags: list[str]) -> None:
    done = run([*command, "launch/train_qformer.py", *flags], limit_seconds=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]


def figures(output: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    return [[line[name] for name in names] for line in lines]


@pytest.fixture(scope="module")
def alone(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process; dropout is off, as each rank leaves out other things."""
    output = tmp_path_factory.mktemp("runs") / "alone"
    train(python(), words(output, dropout=0, save_every=3, ema=0.9))
    return output


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_two_ranks_have_the_losses_and_gradients_of_one_process(
    stage: str, alone: Path, words: Words, tmp_path: Path
) -> None:
    more = {"dropout": 0, "save_every": 3, "ema": 0.9, "config": f"ds_configs/{stage}.json"}
    train(torchrun(2), words(tmp_path / "two", batch_size=4, **more))
    # The contrastive term sees the rows of both ranks, and its gradient goes back to both.
    names = ("loss", "regression", "contrastive", "grad_norm", "bars")
    for two, one in zip(figures(tmp_path / "two", *names), figures(alone, *names), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    read = [(path / "validation.jsonl").read_text() for path in (tmp_path / "two", alone)]
    two_scores, one_scores = map(json.loads, read)
    assert two_scores == pytest.approx(one_scores, rel=1e-4)


def test_one_process_goes_on_where_two_ranks_were_and_the_other_way_round(
    alone: Path, words: Words, tmp_path: Path
) -> None:
    more = {"dropout": 0, "save_every": 3, "ema": 0.9}
    train(torchrun(2), words(tmp_path / "two", batch_size=4, **more))
    resume = tmp_path / "two" / "checkpoints" / "step-3"
    train(python(), words(tmp_path / "two", batch_size=4, resume=resume, **more))
    resume = tmp_path / "two" / "checkpoints" / "step-3"
    train(torchrun(2), words(tmp_path / "two", batch_size=4, resume=resume, **more))
    losses = figures(tmp_path / "two", "loss")
    for found, known in zip(losses, figures(alone, "loss"), strict=True):
        assert found == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_other_launchers_run_the_same_recipe(
    launcher: str, alone: Path, words: Words, tmp_path: Path
) -> None:
    command = {
        "deepspeed": deepspeed(1, free_port()),
        "accelerate": [str(BIN / "accelerate"), "launch"],
    }[launcher]
    train(command, words(tmp_path / "run", dropout=0, save_every=3, ema=0.9))
    assert figures(tmp_path / "run", "loss") == figures(alone, "loss")


def test_ranks_that_do_not_divide_the_rows_of_a_step_are_refused(
    alone: Path, words: Words, tmp_path: Path
) -> None:
    flags = words(alone, dropout=0, save_every=3, ema=0.9, resume="auto")
    done = run([*torchrun(3), "launch/train_qformer.py", *flags], limit_seconds=LIMIT_SECONDS)
    assert done.returncode != 0
    assert done.stderr.count("a number of ranks that divides 8") == 1
