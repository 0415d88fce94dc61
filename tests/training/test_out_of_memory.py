import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.batches.phases import BatchShape
from meloformer.command_line import parse_flags
from meloformer.model.memory import BatchSize, peak_bytes
from meloformer.training.checkpoint import check_files, step_folders
from meloformer.training.config import TrainConfig
from meloformer.training.leaving import OutOfMemoryError
from meloformer.training.metrics import METRICS_NAME
from meloformer.training.out_of_memory import (
    explain_out_of_memory,
    is_out_of_memory,
    what_fits,
)
from meloformer.training.ranks import Ranks
from tests.layouts import tiny_config
from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS, free_port, python, run

WORKER = Path(__file__).with_name("out_of_memory_worker.py")
RANK = Ranks(rank=3, local_rank=3, world_size=8, device=torch.device("cpu"))


def refused_allocation() -> RuntimeError:
    """What torch raises where a CPU has no room."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    return refused.value


def test_running_out_is_told_from_other_failures_also_where_it_is_only_the_cause() -> None:
    assert is_out_of_memory(refused_allocation())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert is_out_of_memory(MemoryError())
    wrapped = RuntimeError("backend failed")
    wrapped.__cause__ = refused_allocation()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("Connection closed by peer [127.0.0.1]:6171"))
    assert not is_out_of_memory(None)


def test_the_line_says_rank_moment_shape_peak_and_remedy() -> None:
    shape = BatchShape(6, 8192, 512)
    with (
        pytest.raises(OutOfMemoryError) as refused,
        explain_out_of_memory(RANK, "step 7", shape, lambda: "take a smaller --batch_size"),
    ):
        raise refused_allocation()
    message = str(refused.value)
    assert re.search(r"rank 3 \(cpu\) in step 7, with .* 6 rows of 8,192 tokens", message)
    assert re.search(
        r"peak [\d.]+ GiB of [\d.]+ GiB \(\d+%\); take a smaller --batch_size", message
    )


def test_a_model_too_large_to_build_is_said_in_a_line_too(
    recipe: ModuleType, chorale_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("meloformer.training.session.build_model", no_memory)
    flags = f"--data {chorale_shards} --max_seq_len 256 --device cpu --output {tmp_path / 'run'}"
    prepared = recipe.prepare(parse_flags(TrainConfig, flags.split()))
    with pytest.raises(OutOfMemoryError, match=r"in the building of the model: peak .*--batch_siz"):
        recipe.Session(prepared)


def test_another_failure_passes_as_it_is_and_asks_for_no_remedy() -> None:
    with (
        pytest.raises(RuntimeError, match="Connection closed"),
        explain_out_of_memory(RANK, "step 7", None, lambda: pytest.fail("asked")),
    ):
        raise RuntimeError("Connection closed by peer")


def test_the_ways_that_are_named_fit_by_formula_and_nothing_a_step_larger_does() -> None:
    config = tiny_config(num_layers=4, width=128, ffn_width=384, max_seq_len=8192)
    size = BatchSize.of(6, 8192)
    whole, one_row = (peak_bytes(config, BatchSize.of(rows, 8192)) for rows in (6, 1))
    room = 0.7 * whole
    less, rows, tokens = (way.split() for way in what_fits(config, size, room))
    assert less[0] == "--checkpointing" and rows[0] == "--batch_size"
    assert tokens[0] == "--max_seq_len"
    assert peak_bytes(config, replace(size, checkpointing=less[1])) <= room  # type: ignore[arg-type]
    assert peak_bytes(config, BatchSize.of(int(rows[1]), 8192)) <= room
    assert peak_bytes(config, BatchSize.of(int(rows[1]) + 1, 8192)) > room
    assert peak_bytes(config, BatchSize.of(6, int(tokens[1]))) <= room
    assert peak_bytes(config, BatchSize.of(6, int(tokens[1]) + 512)) > room
    assert not what_fits(config, size, one_row / 100)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("moment", ["trial", "step"])
def test_one_rank_without_memory_ends_all_with_one_line_and_the_last_checkpoint_goes_on(
    moment: str, chorale_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = (
        f"--data {chorale_shards} --model_size tiny --max_seq_len 1024 --batch_size 4 "
        "--gradient_accumulation_steps 1 --num_workers 0 --validation_rows 2 --device cpu "
        "--samples 0 "
        f"--max_steps 4 --save_every 2 --validate_every 0 --output {output}"
    ).split()
    world = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "MOMENT": moment,
        # Memory goes back to the system as soon as it is free, so that a step has to ask again.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *flags],
            cwd=ROOT,
            env=ENVIRONMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=TIME_LIMIT_SECONDS)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    assert not any("Traceback" in text for text in said), said
    (line,) = re.findall("^error: .*$", "\n".join(said), re.MULTILINE)
    where = "the trial before the first step" if moment == "trial" else "step 3"
    assert f"out of memory on rank 1 (cpu) in {where}, with a micro-batch of 4 rows" in line
    assert "GiB of" in line and "--batch_size" in line and "--checkpointing" in line

    folders = step_folders(output)
    assert [folder.name for folder in folders] == ([] if moment == "trial" else ["step-2"])
    if moment == "trial":
        assert not (output / METRICS_NAME).read_text(), "not a single step was taken"
        return
    check_files(folders[0])
    done = run([*python(), "launch/train.py", *flags, "--resume", "auto"])
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line)["step"] for line in (output / METRICS_NAME).read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
