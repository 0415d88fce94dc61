"""launch/cluster/one_node.sh: what it starts, by each launcher."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch.cluster_scripts import CLUSTER, DEAF, WANTED, put, read_torchrun, run
from tests.training.launching import ROOT


@pytest.mark.parametrize("gpus", ["1", "8"])
def test_one_node_starts_as_many_processes_as_asked_by_each_launcher(start, gpus: str) -> None:
    found = read_torchrun(start("one_node.sh", *WANTED, GPUS=gpus))
    assert (found.standalone, found.nproc_per_node, found.max_restarts) == (True, gpus, 0)
    assert found.flags.model_size == "tiny"
    said = start("one_node.sh", *WANTED, GPUS=gpus, LAUNCHER="deepspeed")
    quiet = ["deepspeed", "--log_level", "warning"]
    assert said == [*quiet, "--num_gpus", gpus, "launch/train.py", *WANTED]
    said = start("one_node.sh", *WANTED, GPUS=gpus, LAUNCHER="accelerate")
    assert said[:4] == ["accelerate", "launch", "--num_processes", gpus]
    assert ("--multi_gpu" in said) == (gpus != "1")
    assert said[-len(WANTED) - 1 :] == ["launch/train.py", *WANTED]
    said = start("one_node.sh", *WANTED, GPUS=gpus, LAUNCHER="python")
    assert said == ["python", "launch/train.py", *WANTED]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "accelerate"])
def test_on_one_node_ranks_hear_signals_and_launchers_do_not(
    start, launcher: str, tmp_path: Path
) -> None:
    start("one_node.sh", *WANTED, LAUNCHER=launcher)
    assert (tmp_path / "said").read_text().split("\0")[: len(DEAF) + 1] == [*DEAF, launcher]


def test_one_node_takes_all_gpus_that_are_visible_and_one_process_without_any(
    start, commands: Path
) -> None:
    assert read_torchrun(start("one_node.sh")).nproc_per_node == "1"
    gpus = "".join(f"GPU {i}: a card\\n  MIG 1g.10gb Device 0\\n" for i in range(4))
    put(commands, **{"nvidia-smi": f"#!/usr/bin/env bash\nprintf '{gpus}'\n"})
    assert read_torchrun(start("one_node.sh")).nproc_per_node == "4"
    found = read_torchrun(start("one_node.sh", CUDA_VISIBLE_DEVICES="0,3"))
    assert found.nproc_per_node == "2"
    assert read_torchrun(start("one_node.sh", CUDA_VISIBLE_DEVICES="")).nproc_per_node == "1"


@pytest.mark.parametrize(("gpus", "taken"), [("", "4,6,7"), ("2", "4,6"), ("3", "4,6,7")])
def test_deepspeed_takes_the_gpus_that_are_visible_and_not_the_first_ones(
    start, gpus: str, taken: str
) -> None:
    visible = {"LAUNCHER": "deepspeed", "CUDA_VISIBLE_DEVICES": "4,6,7", "GPUS": gpus}
    said = start("one_node.sh", *WANTED, **visible)
    assert said[-len(WANTED) - 3 :] == [
        *("--include", f"localhost:{taken}", "launch/train.py"),
        *WANTED,
    ]


def test_an_unknown_launcher_is_refused_in_one_line(start, commands: Path, tmp_path: Path) -> None:
    script = str(CLUSTER / "one_node.sh")
    done = run([script], commands, tmp_path, {"LAUNCHER": "mpirun"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "found LAUNCHER=mpirun; allowed: python, torchrun" in done.stderr


def test_make_train_takes_launcher_and_gpus_and_is_one_process_without() -> None:
    def line(*words: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(
            ["make", "--dry-run", "--old-file=setup", "train", "ARGS=--max_steps 2", *words],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    assert line().endswith("LAUNCHER='python' launch/cluster/one_node.sh --max_steps 2")
    assert "GPUS='8' LAUNCHER='torchrun'" in line("GPUS=8")
    assert "GPUS='8' LAUNCHER='deepspeed'" in line("GPUS=8", "LAUNCHER=deepspeed")
