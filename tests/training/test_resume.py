"""Two ranks killed in the middle and started again, in both modes and under both launchers."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from meloformer.training.checkpoint import step_folder
from meloformer.training.metrics import METRICS_NAME
from tests.training.launching import (
    ENVIRONMENT,
    ROOT,
    TIME_LIMIT_SECONDS,
    deepspeed,
    free_port,
    python,
    run,
    torchrun,
)

NUM_STEPS, SAVE_EVERY, KILL_AFTER = 14, 5, 9


def flags(shards: Path, output: Path, collate: str) -> list[str]:
    """Four rows a step, so that both epochs end, and are resumed over, within the run."""
    values = {
        "config": "ds_configs/zero2.json",
        "data": shards,
        "output": output,
        "collate": collate,
        "batch_size": 1,
        "gradient_accumulation_steps": 2 if collate == "bucket" else 4,
        "max_seq_len": 256,
        "model_size": "tiny",
        "num_workers": 1,
        "max_steps": NUM_STEPS,
        "warmup_steps": 3,
        "save_every": SAVE_EVERY,
        "validation_rows": 2,
        "samples": 0,
        "device": "cpu",
    }
    script = "tests/training/recording_train.py"
    return [script, *(str(word) for pair in values.items() for word in _flag(*pair))]


def _flag(name: str, value: object) -> tuple[str, object]:
    return f"--{name}", value


def read_metrics(output: Path) -> list[dict]:
    return read_lines(output / METRICS_NAME)


def read_lines(path: Path) -> list[dict]:
    # The last line may be half written.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_account(folder: Path, *names: str) -> dict[int, list[dict]]:
    """Some of what each rank has written down, by step."""
    found: dict[int, list[dict]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in read_lines(path):
            found.setdefault(line["step"], []).append({name: line[name] for name in names})
    return found


def read_batches(folder: Path) -> dict[int, list[dict]]:
    """What ranks trained on, by step: for each rank its pieces and the sums of its rows."""
    return read_account(folder, "pieces", "rows")


def over_ranks(batches: list[dict], name: str) -> list[str]:
    return sorted(found for rank in batches for found in rank[name])


def kill_in_the_middle(command: list[str], output: Path) -> list[dict]:
    """Start ranks, SIGKILL all of them some steps after a checkpoint; their metrics until then.

    They wait for it in the step after, however late it comes.
    """
    with (output.parent / f"{output.name}.log").open("w") as log:
        account = {"BATCHES": str(output.parent / "batches"), "HOLD": str(KILL_AFTER + 1)}
        environment, saved = ENVIRONMENT | account, step_folder(output, SAVE_EVERY)
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + TIME_LIMIT_SECONDS
        try:
            while len(read_metrics(output)) < KILL_AFTER or not saved.exists():
                assert launcher.poll() is None, Path(log.name).read_text()[-3000:]
                assert time.monotonic() < deadline, "no step within the time limit"
                time.sleep(0.05)
        finally:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(launcher.pid)
                for process in [*family.children(recursive=True), family]:
                    process.kill()
        launcher.wait()
    return read_metrics(output)


LAUNCHERS: dict[str, Callable[[], list[str]]] = {
    "bucket": lambda: deepspeed(2, free_port()),
    "pack": lambda: torchrun(2),
}


@pytest.fixture(scope="module", params=["bucket", pytest.param("pack", marks=pytest.mark.slow)])
def killed(
    request: pytest.FixtureRequest,
    chorale_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, list[dict]]:
    """A run folder as SIGKILL leaves it, its mode, and what it had reported."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    command = [*LAUNCHERS[request.param](), *flags(chorale_shards, output, request.param)]
    before = kill_in_the_middle(command, output)
    assert len(before) == KILL_AFTER
    return output, request.param, before


def numbers(line: dict) -> tuple:
    """What must be the same to the last bit."""
    return tuple(line[name] for name in ("step", "epoch", "loss", "grad_norm", "lr", "tokens"))


@pytest.mark.distributed
def test_a_killed_run_goes_on_with_exactly_the_losses_and_rates_it_would_have_had(
    killed: tuple[Path, str, list[dict]], chorale_shards: Path, tmp_path: Path
) -> None:
    killed_output, collate, before = killed
    output = tmp_path / "run"
    shutil.copytree(killed_output, output)
    command = [*torchrun(2), *flags(chorale_shards, output, collate), "--resume", "auto"]
    done = run(command, BATCHES=str(tmp_path / "batches"))
    assert done.returncode == 0, done.stderr[-3000:]

    after = read_metrics(output)
    assert [line["step"] for line in after] == list(range(1, NUM_STEPS + 1)), "each step once"
    repeated = range(SAVE_EVERY, len(before))
    assert len(repeated) >= 3
    assert [numbers(after[i]) for i in repeated] == [numbers(before[i]) for i in repeated]
    trained, undisturbed = (read_batches(f.parent / "batches") for f in (output, killed_output))
    assert list(trained) == list(range(SAVE_EVERY + 1, NUM_STEPS + 1))
    for step in range(SAVE_EVERY + 1, len(before) + 1):
        assert trained[step] == undisturbed[step], "each rank the same pieces, the same tokens"
    assert len({line["loss"] for line in after}) == NUM_STEPS
    assert before[0]["slowest_rank"] is None, "each line says it of the step before"
    account = read_account(killed_output.parent / "batches", "own_seconds")
    for line in before[1:]:
        own = [told["own_seconds"] for told in account[line["step"]]]
        assert len(own) == 2 and 0 < min(own) == line["rank_seconds_min"]
        assert line["rank_seconds_max"] == max(own) == own[line["slowest_rank"]]
    starts = json.loads((output / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, SAVE_EVERY]


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 4])
def test_another_number_of_ranks_goes_on_with_the_same_rows_and_close_losses(
    num_ranks: int, killed: tuple[Path, str, list[dict]], chorale_shards: Path, tmp_path: Path
) -> None:
    killed_output, collate, before = killed
    output = tmp_path / "run"
    shutil.copytree(killed_output, output)
    command = python() if num_ranks == 1 else torchrun(num_ranks)
    done = run(
        [*command, *flags(chorale_shards, output, collate), "--resume", "auto"],
        BATCHES=str(tmp_path / "batches"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trained, undisturbed = (read_batches(f.parent / "batches") for f in (output, killed_output))
    for step in range(SAVE_EVERY + 1, len(before) + 1):
        assert len(trained[step]) == num_ranks
        for name in ("pieces", "rows"):
            assert over_ranks(trained[step], name) == over_ranks(undisturbed[step], name), step
    after = read_metrics(output)
    for i in range(SAVE_EVERY, len(before)):
        assert after[i]["tokens"] == before[i]["tokens"]
        assert after[i]["loss"] == pytest.approx(before[i]["loss"], abs=1e-4)
