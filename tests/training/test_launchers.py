"""Ways to start launch/train.py that test_resume.py does not take, and the large sizes."""

import json
from pathlib import Path

import pytest

from tests.training.launching import BIN, ROOT, python, run

pytestmark = pytest.mark.slow


def flags(shards: Path, output: Path, *more: str) -> list[str]:
    common = (
        "--device cpu --max_steps 2 --num_workers 0 --batch_size 1 --validation_rows 1 --samples 0"
    )
    return [
        *("launch/train.py", "--data", str(shards), "--output", str(output)),
        *("--gradient_accumulation_steps", "2", *common.split(), *more),
    ]


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").open()]


def test_accelerate_launch_runs_the_same_recipe(chorale_shards: Path, tmp_path: Path) -> None:
    small = ("--model_size", "tiny", "--max_seq_len", "512")
    done = run([str(BIN / "accelerate"), "launch", *flags(chorale_shards, tmp_path / "a", *small)])
    assert done.returncode == 0, done.stderr[-3000:]
    done = run([*python(), *flags(chorale_shards, tmp_path / "b", *small)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.distributed
def test_two_ranks_of_accelerate_share_the_rows_of_one_process(
    chorale_shards: Path, tmp_path: Path
) -> None:
    small = ("--model_size", "tiny", "--max_seq_len", "512")
    # As people with several cards start it; two ranks take half the micro-steps each.
    one_node = [str(ROOT / "launch/cluster/one_node.sh")]
    several = flags(chorale_shards, tmp_path / "a", *small)[1:]
    several[several.index("--gradient_accumulation_steps") + 1] = "1"
    done = run([*one_node, *several], LAUNCHER="accelerate", GPUS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run([*python(), *flags(chorale_shards, tmp_path / "b", *small)])
    assert done.returncode == 0, done.stderr[-3000:]
    (start,) = json.loads((tmp_path / "a/run.json").read_text())["starts"]
    assert start["world_size"] == 2
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-4)
    tokens = [
        [json.loads(line)["tokens"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("a", "b")
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_large_sizes_take_two_steps_under_zero_2(
    size: str, chorale_shards: Path, tmp_path: Path
) -> None:
    more = ("--model_size", size, "--max_seq_len", "256", "--config", "ds_configs/zero2.json")
    done = run([*python(), *flags(chorale_shards, tmp_path / "run", *more)], OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = losses(tmp_path / "run")
    assert second < first


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3"])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_every_partitioning_trains_saves_and_goes_on_exactly(
    name: str, is_bf16: bool, chorale_shards: Path, tmp_path: Path
) -> None:
    settings = json.loads((ROOT / f"ds_configs/{name}.json").read_text())
    mine = tmp_path / f"{name}.json"
    mine.write_text(json.dumps(settings | {"bf16": {"enabled": is_bf16}}))
    more = ("--model_size", "tiny", "--max_seq_len", "512", "--config", str(mine))
    last = ("--max_steps", "4", "--save_every", "2")
    start = [*python(), *flags(chorale_shards, tmp_path / "run", *more, *last)]
    done = run(start)
    assert done.returncode == 0, done.stderr[-3000:]
    before = losses(tmp_path / "run")
    done = run([*start, "--resume", str(tmp_path / "run/checkpoints/step-2")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "run") == before and len(before) == 4
