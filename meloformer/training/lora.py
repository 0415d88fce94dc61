"""Low-rank adapters on a frozen model: --lora, through peft.

Every linear map W of attention and feed-forward networks becomes W + alpha / rank * B A, of which
only the two thin matrices are trained. What is exported is the model with both added up, in the
usual layout, which needs no peft; and the adapters alone, in peft's.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meloformer.errors import ConfigError
from meloformer.model.museformer import MuseFormer
from meloformer.model.tensor_file import FileSum, write_tensors
from meloformer.training.freezing import count_parameters, describe_trained, note_frozen

# Linear maps of a layer.
TARGETS = ("query", "key_value", "attention_out", "coarse_key_value", "ffn_in", "ffn_out")
ADAPTER_NAME, ADAPTER_WEIGHTS_NAME = "adapter", "adapter_model.safetensors"
# What peft puts into the names of what it wraps, and of what it adds.
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters.

    Args:
        lora: rank of adapters that are trained in place of the weights of --init_from; 0 for none.
        lora_alpha: they weigh alpha / rank; twice the rank if not given.
        lora_targets: linear maps that get one; all of attention and feed-forward networks if not
            given.
    """

    lora: int = 0
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.lora < 0:
            raise ConfigError(f"--lora {self.lora}: allowed: a rank of 1 or more, 0 for none")
        if self.lora_alpha is not None and self.lora_alpha <= 0:
            raise ConfigError(f"--lora_alpha {self.lora_alpha:g}: allowed: above 0")
        wrong = set(self.lora_targets) - set(TARGETS)
        if wrong or not self.lora_targets:
            raise ConfigError(
                f"--lora_targets: found {' '.join(sorted(wrong)) or 'none'}; allowed: "
                f"{' '.join(TARGETS)}"
            )

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "AdapterConfig":
        """That of a run.json; none where the run is older than the flag."""
        plain = dict(settings)
        return cls(**plain | {"lora_targets": tuple(plain.get("lora_targets", TARGETS))})

    @property
    def alpha(self) -> float:
        """Weight of the adapters, times the rank."""
        return 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha

    @property
    def targets(self) -> list[str]:
        """Linear maps that get one, each once, as they stand in a layer."""
        return [name for name in TARGETS if name in self.lora_targets]

    def describe(self) -> str:
        """The flags that it comes to, on one line."""
        if not self.lora:
            return "no --lora"
        where = "" if self.targets == list(TARGETS) else f" --lora_targets {' '.join(self.targets)}"
        return f"--lora {self.lora} --lora_alpha {self.alpha:g}{where}"


NO_ADAPTERS = AdapterConfig()


def check_peft() -> None:
    """Refuse --lora without its library, before anything is built.

    Raises:
        ConfigError: with the command that installs it.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            "--lora: the package peft is not installed; allowed: with it, or without the flag; "
            "install it with: pip install peft"
        )


def check_same_adapters(asked: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse to go on with other adapters than the run was started with.

    Args:
        asked: of this start, as plain data.
        known: of the run in --output; nothing where it is older than the flag.

    Raises:
        ConfigError: the two differ.
    """
    new, old = (AdapterConfig.from_json(settings).describe() for settings in (asked, known))
    if new != old:
        raise ConfigError(
            f"{new}: the run in --output was started with {old}; allowed: the same, or another "
            "--output with --init_from"
        )


def add_adapters(model: MuseFormer, config: AdapterConfig) -> None:
    """Wrap the linear maps, and freeze everything but the adapters; in place.

    An adapter begins as nothing: the model computes what it did before.

    Raises:
        ConfigError: peft is not installed.
    """
    check_peft()  # on this host, too
    # Imported here: it takes seconds, and few runs want it.
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(**_settings(config)), model)
    note_frozen(model)


def describe_adapters(model: nn.Module, config: AdapterConfig) -> list[str]:
    """A line on what --lora has come to; none without it."""
    if not config.lora:
        return []
    return [f"{config.describe()}: parameters: {describe_trained(*count_parameters(model))}"]


def merge(weights: dict[str, torch.Tensor], config: AdapterConfig) -> dict[str, torch.Tensor]:
    """The weights of a plain model that computes the same.

    Args:
        weights: whole, by the names that they have in a model with adapters; those of a plain
            model come back as they are.
        config: of the adapters.
    """
    merged = {}
    for name, weight in weights.items():
        if _is_adapter(name):
            continue
        plain = name.replace(_BASE, ".")
        if plain != name:
            down, up = (weights[name.replace(_BASE, part)].float() for part in (_DOWN, _UP))
            added = weight.float() + config.alpha / config.lora * (up @ down)
            merged[plain] = added.to(weight.dtype)
        else:
            merged[plain] = weight
    return merged


def save_adapters(
    folder: Path, weights: dict[str, torch.Tensor], config: AdapterConfig
) -> dict[str, FileSum]:
    """Write the adapters alone as peft reads them: PeftModel.from_pretrained(model, folder).

    Args:
        folder: made where missing.
        weights: as for `merge`.
        config: of the adapters.

    Returns:
        Size and sum of the file of the weights, by its name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _PREFIX + name.replace(".default.", "."): weight.detach().cpu().contiguous()
        for name, weight in weights.items()
        if _is_adapter(name)
    }
    settings = {"peft_type": "LORA", "task_type": None, **_settings(config)}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    path = folder / ADAPTER_WEIGHTS_NAME
    return {path.name: write_tensors(path, tensors, {"format": "pt"})}


def _is_adapter(name: str) -> bool:
    return _DOWN in name or _UP in name


def _settings(config: AdapterConfig) -> dict[str, Any]:
    return {
        "r": config.lora,
        "lora_alpha": config.alpha,
        "target_modules": config.targets,
        "lora_dropout": 0.0,
        "bias": "none",
    }
