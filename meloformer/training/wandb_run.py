"""A second place for the figures of a run, for those who keep them at Weights & Biases."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meloformer.errors import ConfigError


def check_installed() -> None:
    """Refuse --wandb where the package is missing, before anything is built.

    Raises:
        ConfigError: it is.
    """
    if find_spec("wandb") is None:
        raise ConfigError(
            "--wandb: the package wandb is not installed; allowed: with it, or without the flag; "
            "install it with: pip install wandb"
        )


class WandbRun:
    """One run of a project; a resumed run goes on under the same name.

    Without a login, start with WANDB_MODE=offline: the figures stay in the run folder until
    `wandb sync` sends them.

    Args:
        project: where it is filed.
        folder: the run folder; wandb keeps its own files in a folder there.
        run_id: of the run; the same one means the same run.
        settings: flags of the run.

    Raises:
        ConfigError: wandb does not start.
    """

    def __init__(self, project: str, folder: Path, run_id: str, settings: dict[str, Any]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=settings,
            )
        except wandb.Error as error:
            raise ConfigError(
                f"--wandb {project}: found {error}; allowed: a project that you are logged in "
                "for; log in with `wandb login`, or start with WANDB_MODE=offline"
            ) from error
        # A resumed run repeats steps; wandb's own counter only goes up.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float | int | None], step: int) -> None:
        """Report figures of an optimizer step."""
        self._run.log({"step": step} | {k: v for k, v in values.items() if v is not None})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
