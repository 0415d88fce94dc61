"""The folder of a trained bridge.

config.json               model_type, its settings, the base it was trained for, its encoder
model.safetensors         weights
statistics.safetensors    mean and deviation of the base's summaries: what undoes normalising
heads.safetensors         heads that predict attributes from the text, where there are some
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from meloformer.errors import CheckpointError
from meloformer.model.tensor_file import FileSum, write_tensors
from meloformer.model.weights import MODEL_NAMES, WEIGHTS_NAME, step_of

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
STATISTICS_NAME = "statistics.safetensors"
HEADS_NAME = "heads.safetensors"
# Where each kind of bridge lives: module, model, settings.
MODELS = {
    "qformer": ("meloformer.bridge.qformer", "QFormer", "QFormerConfig"),
    "diffusion_bridge": (
        "meloformer.bridge.diffusion_bridge",
        "DiffusionBridge",
        "DiffusionBridgeConfig",
    ),
}


def model_type_of(model: object) -> str:
    """The word for a bridge's class in config.json."""
    name = type(model).__name__
    return next(word for word, (_, model_name, _) in MODELS.items() if model_name == name)


@dataclass(frozen=True, kw_only=True)
class BridgeFacts:
    """What stands beside the weights of a bridge.

    Args:
        model_type: a key of the table of models.
        config: settings of the model, plain data.
        base: see `bridges.LoadedBridge`.
        encoder: see `bridges.LoadedBridge`.
        mean_D: see `bridges.LoadedBridge`.
        std_D: see `bridges.LoadedBridge`.
        extra: further plain data for config.json, such as the step.
    """

    model_type: str
    config: dict[str, Any]
    base: dict[str, Any]
    encoder: dict[str, Any]
    mean_D: torch.Tensor
    std_D: torch.Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        base: dict[str, Any],
        encoder: dict[str, Any],
        mean_D: torch.Tensor,
        std_D: torch.Tensor,
    ) -> "BridgeFacts":
        """Facts of a model that is about to be trained."""
        return cls(
            model_type=model_type_of(model),
            config=asdict(model.config),
            base=base,
            encoder=encoder,
            mean_D=mean_D,
            std_D=std_D,
        )

    def with_extra(self, **extra: Any) -> "BridgeFacts":
        """The same with more plain data."""
        return replace(self, extra={**self.extra, **extra})


def save_bridge(
    folder: Path, facts: BridgeFacts, state: dict[str, torch.Tensor]
) -> dict[str, FileSum]:
    """Write a bridge's folder.

    Args:
        folder: created where missing; not yet under its last name, if it is to be whole or absent.
        facts: what stands beside the weights.
        state: the model's state dict.

    Returns:
        Size and sum of the files of tensors, by name.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": facts.model_type,
        "format": FORMAT_VERSION,
        **facts.config,
        "base": facts.base,
        "encoder": facts.encoder,
        **facts.extra,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    statistics = {"mean": facts.mean_D, "std": facts.std_D}
    return {
        name: write_tensors(
            folder / name,
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            {"format": "pt"},
        )
        for name, tensors in ((STATISTICS_NAME, statistics), (WEIGHTS_NAME, state))
    }


def find_bridge_folder(path: Path, weights: Literal["raw", "ema"] = "raw") -> Path | None:
    """The bridge of a run folder, of a step folder, or the folder itself; None where there is none.

    Args:
        path: what --bridge or --checkpoint says.
        weights: those of the last step, or their average.
    """
    steps = sorted(path.glob("checkpoints/step-*"), key=step_of, reverse=True)
    name = MODEL_NAMES[weights]
    folders = [path / name, *(step / name for step in steps if step_of(step) >= 0)]
    if weights == "raw" or path.name == name:
        folders.insert(0, path)
    for folder in folders:
        if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
            return folder
    return None


def read_bridge_config(folder: Path) -> dict[str, Any]:
    """config.json of a bridge's folder.

    Raises:
        CheckpointError: no such file, damaged, of another format, or no bridge's.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); expected the settings of a bridge"
        ) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in MODELS:
        raise CheckpointError(
            f"{path}: found model_type {found!r}; allowed: {', '.join(MODELS)}; give the run of "
            "launch/train_qformer.py or launch/train_diffusion_bridge.py"
        )
    if config.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: found format {config.get('format')!r}, expected {FORMAT_VERSION}; load it "
            "with the release that wrote it"
        )
    for key in ("base", "encoder"):
        if not isinstance(config.get(key), dict) or "fingerprint" not in config[key]:
            raise CheckpointError(
                f"{path}: {key}: found no fingerprint, expected that of the {key} it was trained "
                "for; train the bridge again"
            )
    return config
