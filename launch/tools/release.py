"""Build what is handed out, and try each part where nothing else is.

make release
make release BRIDGE=runs/<bridge> BASE=runs/<base>

python launch/tools/release.py --output dist
python launch/tools/release.py --bridge runs/<bridge> --base runs/<base>
python launch/tools/release.py --bridge runs/<bridge> --base runs/<base> --text_encoder minilm

Wheel, sdist and MeloFormer-<version>.tar.gz of the commit that is checked out, each installed in a
new environment (PIP_INDEX_URL names the index) and made to walk from MIDI to tokens, shards and
music outside of any checkout. With a bridge also diffusion_bridge_code.tar.gz and
diffusion_bridge_full.tar.gz, with DEPLOY.md: each is unpacked in an empty folder, the one of code
beside the weights of the other, and writes music from a text with the network refused. What fails
leaves nothing behind: --output takes files only when all of them work. A tree with changes is
refused, since a release is a commit.
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from meloformer.bridge.bridges import BridgeWeights
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.model.weights import Weights
from meloformer.release.bridge_archive import TrainedParts, write_bridge_archives
from meloformer.release.offline import try_offline
from meloformer.release.packages import (
    CONSTRAINTS_NAME,
    Environment,
    build_packages,
    check_build_installed,
    try_packages,
)
from meloformer.release.source import SUMS_NAME, clean_commit, write_sums


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """Flags of launch/tools/release.py.

    Args:
        output: folder of the files; those of the same names are replaced.
        root: of the checkout.
        bridge: run of a bridge that is handed out too.
        base: run of the MuseFormer that it was trained for.
        bridge_weights: those of the bridge's last step, their average, or the average where there
            is one.
        weights: those of the base's last step, or their average.
        text_encoder: another place of the bridge's text encoder, such as a folder.
        encoder_files: put the files of the text encoder into the archive; off: name it there.
    """

    output: Path = Path("dist")
    root: Path = Path()
    bridge: Path | None = None
    base: Path | None = None
    bridge_weights: BridgeWeights = "auto"
    weights: Weights = "raw"
    text_encoder: str | None = None
    encoder_files: Literal["on", "off"] = "on"

    def __post_init__(self) -> None:
        if (self.bridge is None) != (self.base is None):
            raise ConfigError(
                f"--bridge {self.bridge} and --base {self.base}: allowed: both or neither, since "
                "a bridge speaks to the one model that it was trained for"
            )


def main(config: ReleaseConfig) -> None:
    """Look, build, try, and only then hand out."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    check_build_installed()
    commit = clean_commit(config.root.resolve())
    say(f"MeloFormer {commit.version.number} ({commit.version.day}), commit {commit.name[:12]}")
    parts = None
    if config.bridge is not None and config.base is not None:
        parts = TrainedParts.find(
            config.bridge,
            config.base,
            bridge_weights=config.bridge_weights,
            weights=config.weights,
            text_encoder=config.text_encoder,
            with_encoder=config.encoder_files == "on",
        )
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder).resolve()
        made = aside / "dist"
        made.mkdir()
        files = build_packages(commit, made, aside)
        environment = Environment.make(aside / "venv")
        for found in try_packages(files, commit.root / CONSTRAINTS_NAME, environment, aside):
            say(found)
        if parts is not None:
            files += write_bridge_archives(commit, parts, files[0], files[-1], made, aside)
            code, full = files[-2:]
            for archive, other in ((full, None), (code, full)):
                if parts.encoder is None:
                    say(f"{archive.name}: not tried offline, since no text encoder is in it")
                    continue
                trial = aside / f"offline-{archive.name}"
                programs = environment.programs
                for found in try_offline(archive, programs, trial, weights_from=other):
                    say(found)
        write_sums(made)
        config.output.mkdir(parents=True, exist_ok=True)
        for path in (*files, made / SUMS_NAME):
            _put(path, config.output / path.name)
    for path in files:
        handed_out = config.output / path.name
        say(f"{handed_out}  {handed_out.stat().st_size:,} bytes  sha256 {sha256_of(handed_out)}")
    say(f"{config.output / SUMS_NAME}; {time.monotonic() - began:.0f} s")


def _put(path: Path, target: Path) -> None:
    """Whole under its name or not at all, from another disk too."""
    aside = target.with_name(f".{target.name}")
    shutil.copyfile(path, aside)
    os.replace(aside, target)


if __name__ == "__main__":
    run_recipe(main, ReleaseConfig)
