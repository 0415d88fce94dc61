"""Recipes run one after another, as somebody would type them."""

import shlex
import subprocess
import sys

from rich.console import Console

from meloformer.command_line import LAUNCH
from meloformer.errors import TrainingError

console = Console()


def run(script: str, *arguments: object) -> None:
    """Run a recipe to its end, its output on this terminal.

    Raises:
        TrainingError: it ends with another status than 0.
    """
    status = start(script, *arguments).wait()
    if status:
        raise TrainingError(f"launch/{script} ended with status {status}; see its message above")


def start(script: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start a recipe in a process group of its own."""
    command = [sys.executable, str(LAUNCH / script), *map(str, arguments)]
    # As somebody could paste it: quoted, on one line.
    typed = shlex.join(["python", f"launch/{script}", *map(str, arguments)])
    console.print(typed, style="bold", markup=False, highlight=False, soft_wrap=True)
    return subprocess.Popen(command, start_new_session=True)
