"""A trained bridge with all that it needs, as an archive for a machine without a network."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from meloformer.bridge.base_folder import find_base
from meloformer.bridge.bridge_folder import (
    CONFIG_NAME,
    HEADS_NAME,
    STATISTICS_NAME,
    model_type_of,
)
from meloformer.bridge.bridges import BridgeWeights, LoadedBridge, load_bridge
from meloformer.bridge.encoder_folder import (
    EncoderSettings,
    encoder_files,
    find_encoder_folder,
    folder_fingerprint,
)
from meloformer.errors import ConfigError
from meloformer.model.weights import WEIGHTS_NAME, Weights, load_model, model_fingerprint
from meloformer.release.deploy_page import Deployment, deploy_page
from meloformer.release.packages import CONSTRAINTS_NAME
from meloformer.release.source import Commit, unpack, write_archive, write_sums

CODE_ARCHIVE, FULL_ARCHIVE = "diffusion_bridge_code", "diffusion_bridge_full"
DEPLOY_NAME = "DEPLOY.md"
# Folders of an archive.
BASE, BRIDGE, ENCODER = "base", "bridge", "text_encoder"


@dataclass(frozen=True, kw_only=True)
class TrainedParts:
    """What was trained, found and held against each other.

    Args:
        bridge: loaded, so that it is known to load.
        base: model folder of the MuseFormer that it was trained for.
        encoder: folder of the text encoder that it was trained with; None leaves it out.
    """

    bridge: LoadedBridge
    base: Path
    encoder: Path | None

    @classmethod
    def find(
        cls,
        bridge: Path,
        base: Path,
        *,
        bridge_weights: BridgeWeights = "auto",
        weights: Weights = "raw",
        text_encoder: str | None = None,
        with_encoder: bool = True,
    ) -> "TrainedParts":
        """Load and compare, before anything is written.

        Args:
            bridge: run, step or model folder of a bridge.
            base: that of its MuseFormer.
            bridge_weights: see `load_bridge`.
            weights: of the base.
            text_encoder: another place of the bridge's encoder.
            with_encoder: whether its files are handed out too.

        Raises:
            ConfigError: the encoder is not on this machine.
            CheckpointError: a part is missing or damaged, or they were not trained together.
            TokenError: the base knows another vocabulary.
        """
        loaded = load_bridge(bridge, weights=bridge_weights)
        folder = find_base(base, weights)
        loaded.check_base(model_fingerprint(folder))
        load_model(folder)
        encoder = None
        if with_encoder:
            encoder = find_encoder_folder(text_encoder or loaded.encoder["name"])
            settings = EncoderSettings.of_folder(encoder)
            loaded.check_encoder(folder_fingerprint(encoder, settings))
        return cls(bridge=loaded, base=folder, encoder=encoder)


def write_bridge_archives(
    commit: Commit, parts: TrainedParts, wheel: Path, source: Path, output: Path, aside: Path
) -> list[Path]:
    """The code alone, for whoever has the weights; and code, weights, statistics and encoder.

    Args:
        commit: that the code is of.
        parts: what was trained.
        wheel: of the commit.
        source: archive of the commit.
        output: folder that they are written into.
        aside: folder to work in.

    Returns:
        Both archives.

    Raises:
        ConfigError: a folder of the release is in the way.
    """
    archives = []
    for name in (CODE_ARCHIVE, FULL_ARCHIVE):
        folder = aside / name
        if folder.exists():
            raise ConfigError(f"{folder}: found something there; allowed: an empty folder")
        folder.mkdir()
        tree = unpack(source, folder).rename(folder / "code")
        shutil.copy(wheel, folder)
        shutil.copy(tree / CONSTRAINTS_NAME, folder)
        is_full = name == FULL_ARCHIVE
        if is_full:
            _copy_parts(parts, folder)
        page = deploy_page(_deployment(commit, parts, wheel, folder, is_full=is_full))
        (folder / DEPLOY_NAME).write_text(page, encoding="utf-8")
        write_sums(folder)
        archives.append(output / f"{name}.tar.gz")
        write_archive(folder, archives[-1], commit.seconds)
    return archives


def _copy_parts(parts: TrainedParts, folder: Path) -> None:
    bridge = [CONFIG_NAME, WEIGHTS_NAME, STATISTICS_NAME]
    if (parts.bridge.folder / HEADS_NAME).is_file():
        bridge.append(HEADS_NAME)
    copied = {
        BASE: (parts.base, [CONFIG_NAME, WEIGHTS_NAME]),
        BRIDGE: (parts.bridge.folder, bridge),
    }
    if parts.encoder is not None:
        copied[ENCODER] = (parts.encoder, encoder_files(parts.encoder))
    for name, (source, files) in copied.items():
        for file in files:
            target = folder / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            # The content alone: a cache of the hub holds links.
            shutil.copyfile(source / file, target)


def _deployment(
    commit: Commit, parts: TrainedParts, wheel: Path, folder: Path, *, is_full: bool
) -> Deployment:
    return Deployment(
        version=commit.version.number,
        commit=commit.name,
        wheel=wheel.name,
        kind=model_type_of(parts.bridge.model),
        is_full=is_full,
        has_encoder=parts.encoder is not None,
        encoder=parts.bridge.encoder,
        base_sum=parts.bridge.base["fingerprint"],
        bridge_sum=model_fingerprint(parts.bridge.folder),
        files=sorted(
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] != "code"
        ),
        folder=folder,
    )
