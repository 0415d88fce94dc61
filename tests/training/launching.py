"""Starting several processes for a test, with a time limit and without leftovers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Of whatever ends by itself: a machine may stand still, or be busy with other things for minutes.
TIME_LIMIT_SECONDS = 900

# One thread per rank: two cores cannot carry more, and sums then have one order.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


def python() -> list[str]:
    """Command that starts a script in one process."""
    return [sys.executable]


def torchrun(num_ranks: int) -> list[str]:
    """Command that starts a script on some ranks, at a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc_per_node", str(num_ranks)]


def deepspeed(num_ranks: int, port: int) -> list[str]:
    """The same with the deepspeed launcher."""
    return [str(BIN / "deepspeed"), "--num_gpus", str(num_ranks), "--master_port", str(port)]


def run(
    command: list[str], *, limit_seconds: float = TIME_LIMIT_SECONDS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end in the repository; output and status are the caller's."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=limit_seconds,
    )


_KEPT: list[socket.socket] = []


def keep_port(port: int = 0) -> int:
    """Until this process ends, nobody gets a port who does not ask for it by its number.

    Who does gets it all the same, if it allows addresses to be used again, as servers do.

    Args:
        port: any that is free if 0.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", port))
    _KEPT.append(kept)
    return kept.getsockname()[1]


def free_port() -> int:
    """A port for a store that somebody is about to open."""
    return keep_port()
