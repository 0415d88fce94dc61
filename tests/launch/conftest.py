"""What tests of launch/cluster share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.cluster_scripts import CLUSTER, DEAF, SAY, SCONTROL, SRUN, put, run


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Folder in front of all others that programs are looked for in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def start(commands: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """What a script makes of these flags and variables: the launcher's name and arguments."""
    put(commands, torchrun=SAY, deepspeed=SAY, accelerate=SAY, python=SAY)
    put(commands, srun=SRUN, scontrol=SCONTROL)

    def start_(script: str, *flags: str, **variables: str) -> list[str]:
        done = run([str(CLUSTER / script), *flags], commands, tmp_path, variables)
        assert done.returncode == 0, done.stderr
        said = (tmp_path / "said").read_text().split("\0")[:-1]
        return said[len(DEAF) :] if said[: len(DEAF)] == DEAF else said

    return start_
