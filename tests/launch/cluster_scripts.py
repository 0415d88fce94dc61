"""Scripts of launch/cluster among launchers that only say how they were called."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.run import get_args_parser

from meloformer.command_line import parse_flags
from meloformer.training.config import TrainConfig
from tests.training.launching import ROOT

CLUSTER = ROOT / "launch" / "cluster"
WANTED = ["--data", "data_shards/a", "--output", "runs/a", "--model_size", "tiny"]

# What one_node.sh puts in front of launchers.
DEAF = ["python", "-m", "meloformer.training.deaf_launcher"]
# A launcher that only says how it was called.
SAY = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" > "$SAID"
env > "$SAID.environment"
"""
# What the scheduler's commands do on a cluster of this machine alone.
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf '%s\\n' "${NAMES:-127.0.0.1}"; exit; fi
echo "scontrol $*" >> "$SAID"
"""
SRUN_UNTIL_STOPPED = """#!/usr/bin/env bash
trap 'sleep 0.2; echo "ranks have saved" >> "$SAID"; exit 1' TERM
echo $$ > "$SAID.pid"
while true; do sleep 0.02; done
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$SAID"
kill -TERM "$(cat "$SAID.pid")"
"""


def put(folder: Path, **programs: str) -> None:
    for name, text in programs.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)


def run(
    command: list[str], commands: Path, tmp_path: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": f"{commands}:/usr/bin:/bin", "SAID": str(tmp_path / "said"), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read_torchrun(said: list[str]) -> Any:
    """Arguments as torchrun itself reads them; those of launch/train.py have to parse too."""
    assert said[0] == "torchrun"
    found = get_args_parser().parse_args(said[1:])
    assert found.training_script == "launch/train.py"
    found.flags = parse_flags(TrainConfig, found.training_script_args)
    return found
