"""The build on a Ray cluster of two nodes on this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RECIPE = Path(__file__).resolve().parents[2] / "launch/shard_data.py"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield found
    finally:
        found.shutdown()


def start(output: Path, *flags: str, address: str | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if address is not None:
        environment |= {"RAY_ADDRESS": address}
    command = [sys.executable, str(RECIPE), "--output", str(output), *flags]
    return subprocess.Popen(
        [*command, "--valid_share", "0.2", "--pieces_per_shard", "64"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def all_bytes(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_cluster_that_loses_a_node_writes_the_bytes_of_one_machine(
    cluster: Any, tmp_path: Path
) -> None:
    local = start(tmp_path / "local", "--num_workers", "2")
    assert local.wait() == 0, local.stdout and local.stdout.read()

    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    build = start(tmp_path / "ray", "--engine", "ray", address=cluster.address)
    spill = tmp_path / ".ray.building" / "work" / "spill"
    while not list(spill.glob("*.pieces")) and build.poll() is None:
        time.sleep(0.01)
    assert build.poll() is None, build.stdout and build.stdout.read()
    cluster.remove_node(node, allow_graceful=False)
    said, _ = build.communicate(timeout=300)
    assert build.returncode == 0, said
    assert all_bytes(tmp_path / "ray") == all_bytes(tmp_path / "local")


def test_an_absent_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    build = start(tmp_path / "ray", "--engine", "ray", address="127.0.0.1:1")
    said, _ = build.communicate(timeout=120)
    assert build.returncode == 2
    assert "no Ray cluster" in said.splitlines()[-1]


def test_without_a_cluster_a_line_says_that_this_machine_alone_works(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    build = start(tmp_path / "ray", "--engine", "ray", "--midi", "chorales")
    said, _ = build.communicate(timeout=300)
    assert build.returncode == 0, said
    assert re.search(r"--engine ray: \d+ cores of a Ray of this machine alone.*RAY_ADDRESS", said)
    assert re.search(r"files per second$", said.strip()), "cores of a cluster come and go"
