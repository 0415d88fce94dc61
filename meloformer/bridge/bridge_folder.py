"""The folder of a trained bridge, or of an adapter between a bridge and its base.

config.json               model_type, its settings, the base it was trained for, its encoder; and of
                          an adapter the bridge
model.safetensors         weights
statistics.safetensors    mean and deviation that undo normalising: those of the base's summaries
                          after the layer that the bridge speaks after, or those of its input
heads.safetensors         heads that predict attributes from the text, where there are some
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from meloformer.errors import CheckpointError
from meloformer.model.injection import INJECTION_LAYER
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
ADAPTERS = {"adapter": ("meloformer.bridge.adapter", "SummaryAdapter", "SummaryAdapterConfig")}


def model_type_of(model: object) -> str:
    """The word for the class of a bridge or an adapter in config.json."""
    name, known = type(model).__name__, {**MODELS, **ADAPTERS}
    return next(word for word, (_, model_name, _) in known.items() if model_name == name)


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
        layer: see `bridges.LoadedBridge`.
        extra: further plain data for config.json, such as the step.
    """

    model_type: str
    config: dict[str, Any]
    base: dict[str, Any]
    encoder: dict[str, Any]
    mean_D: torch.Tensor
    std_D: torch.Tensor
    layer: int = INJECTION_LAYER
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
        layer: int = INJECTION_LAYER,
    ) -> "BridgeFacts":
        """Facts of a model that is about to be trained."""
        return cls(
            model_type=model_type_of(model),
            config=asdict(model.config),
            base=base,
            encoder=encoder,
            mean_D=mean_D,
            std_D=std_D,
            layer=layer,
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
        "layer": facts.layer,
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


def read_bridge_config(folder: Path, models: Mapping[str, Any] = MODELS) -> dict[str, Any]:
    """config.json of a bridge's folder; its `layer` is filled in where a folder is older than that.

    Args:
        folder: of the model itself.
        models: kinds that are allowed, such as `ADAPTERS`.

    Raises:
        CheckpointError: no such file, damaged, of another format, or of no such kind.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); expected the settings of a bridge"
        ) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in models:
        recipes = " or ".join(f"launch/train_{name}.py" for name in models)
        raise CheckpointError(
            f"{path}: found model_type {found!r}; allowed: {', '.join(models)}; give the run of "
            f"{recipes}"
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
    layer = config.setdefault("layer", INJECTION_LAYER)
    if type(layer) is not int or layer < 0:
        raise CheckpointError(
            f"{path}: layer: found {layer!r}, expected the layer after which its summaries enter, "
            "0 for the input; train the bridge again"
        )
    return config
