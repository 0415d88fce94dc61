"""Which process writes what, as the environment says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from meloformer.errors import ConfigError
from meloformer.generation.sharing import Share, share_of_environment
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.layouts import tiny_config

ROOT = Path(__file__).parents[2]


def test_a_process_without_others_has_all_the_work() -> None:
    share = share_of_environment({})
    assert share == Share(rank=0, local_rank=0, num_processes=1)
    assert list(share.of(3)) == [0, 1, 2]


def test_each_batch_has_one_process_and_idle_ones_are_told_why() -> None:
    shares = [
        share_of_environment({"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "3"})
        for rank in range(3)
    ]
    assert sorted(number for share in shares for number in share.of(7)) == list(range(7))
    assert shares[0].describe(7) == "7 batches over 3 processes"
    assert "2 without any: a smaller --batch_size" in shares[0].describe(1)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="allowed: RANK from 0 to WORLD_SIZE - 1"):
        share_of_environment(environment)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    second = Share(rank=1, local_rank=1, num_processes=2)
    with pytest.raises(ConfigError, match="found 1 GPUs; allowed: --nproc_per_node 1"):
        second.device("cuda")
    assert second.device("cpu") == "cpu"


@pytest.mark.slow
def test_torchrun_writes_what_python_writes_and_ends_all_where_one_fails(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=1))
    save_model(tmp_path / "model", model.config, model.state_dict(), {"tokenizer": fingerprint()})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def write(folder: str, *start: str) -> "subprocess.CompletedProcess[str]":
        flags = ["--checkpoint", "model", "--output", f"{folder}/a.mid", "--no_piano_roll"]
        flags += ["--bars", "2", "--num_samples", "4", "--batch_size", "1", "--device", "cpu"]
        command = [*(start or (sys.executable,)), str(ROOT / "launch/generate.py"), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    for done in (write("one"), write("two", *torchrun)):
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("in all") == 1
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("one", "two")
    )
    assert one == two and len(one) == 4
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "two" / "a-1.mid").mkdir(parents=True)  # of the second process
    failed = write("two", *torchrun)
    assert failed.returncode != 0
    assert "a-1.mid: cannot be written" in failed.stderr
