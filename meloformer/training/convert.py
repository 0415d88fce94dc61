"""Optimizer state for another number of ranks, by way of DeepSpeed's universal format."""

import subprocess
import sys
from pathlib import Path

from meloformer.errors import CheckpointError
from meloformer.training.checkpoint import DEEPSPEED_NAME


def to_universal(checkpoint: Path, target: Path, tag: str) -> None:
    """Convert the parts of a checkpoint into parts that fit any number of ranks.

    In its own process: the converter starts a pool of workers and changes global state.

    Args:
        checkpoint: a step folder that has been checked.
        target: folder to make; holds `tag` afterwards.
        tag: name of the parts in both.

    Raises:
        CheckpointError: the converter failed; its last line says why.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint / DEEPSPEED_NAME / tag)]
    command += ["--output_folder", str(target / tag)]
    # Without it the converter asserts on states that DeepSpeed's own engine leaves out.
    command += ["--inject_missing_state"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{checkpoint}: found parts that cannot be converted to this number of ranks ({last}); "
            "resume with as many ranks as wrote it"
        )
