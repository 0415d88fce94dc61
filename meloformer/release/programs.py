"""Programs run for a release: quiet where they succeed, shown where they fail."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from meloformer.errors import ReleaseError


def run_program(
    words: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """What a program prints.

    Args:
        words: program and arguments.
        folder: where it runs.
        environment: variables that differ from those of this process; an empty one is taken out.

    Raises:
        ReleaseError: it ends with another status than 0.
    """
    variables = {**os.environ, **(environment or {})}
    command = [str(word) for word in words]
    done = subprocess.run(
        command,
        cwd=folder,
        env={name: value for name, value in variables.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
        last = said if len(said) < 600 else "... " + said[-600:]
        raise ReleaseError(
            f"`{shlex.join(command)}` in {folder} ended with status {done.returncode}: {last}"
        )
    return done.stdout
