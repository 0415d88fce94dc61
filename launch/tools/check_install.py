"""Whether this installation of MeloFormer works, in a minute and without a network.

python launch/tools/check_install.py
python launch/tools/check_install.py --output checked     # keep what was made

Small pieces of its own go to tokens and back, into shards, and a model with random weights writes
two bars. Nothing is trained and no package beyond the core is wanted.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.release.smoke import check_installation


@dataclass(frozen=True, kw_only=True)
class CheckInstallConfig:
    """Flags of launch/tools/check_install.py.

    Args:
        output: folder to be made, with all that was written; nothing is kept if not given.
    """

    output: Path | None = None

    def __post_init__(self) -> None:
        if self.output is not None and self.output.exists():
            raise ConfigError(
                f"--output {self.output}: found something there; allowed: a name that is free"
            )


def main(config: CheckInstallConfig) -> None:
    """Check part by part; the first that fails ends it."""
    console = Console()
    with tempfile.TemporaryDirectory() as aside:
        folder = config.output or Path(aside) / "checked"
        folder.mkdir(parents=True)
        for found in check_installation(folder.resolve()):
            console.print(f"ok  {found}", markup=False, highlight=False, soft_wrap=True)
    console.print("this installation works")


if __name__ == "__main__":
    run_recipe(main, CheckInstallConfig)
