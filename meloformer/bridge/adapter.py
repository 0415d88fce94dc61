"""Adapter: from a bar's own summary and the injected one to where its closed summary begins.

A blend mixes both with one weight for all bars and directions. The adapter chooses the weight of
each direction of each bar, and adds what neither of them says. It begins as the blend and looks at
one bar at a time: so it moves no token's logit that the blend does not move.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meloformer.bridge.bridge_folder import (
    ADAPTERS,
    CONFIG_NAME,
    find_bridge_folder,
    model_type_of,
    read_bridge_config,
)
from meloformer.bridge.bridges import LoadedBridge, build_model, load_state, load_statistics
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.weights import MODEL_NAMES, model_fingerprint

_RECIPE = "launch/train_adapter.py"


@dataclass(frozen=True, kw_only=True)
class SummaryAdapterConfig:
    """Shape of an adapter, and what it begins as.

    Args:
        summary_width: D of the base's summaries.
        hidden_width: of the layer between.
        alpha: weight of the injected summaries in the blend that it begins as.
    """

    summary_width: int
    hidden_width: int = 512
    alpha: float = 0.7

    def __post_init__(self) -> None:
        if self.hidden_width < 1:
            raise ConfigError(f"--hidden_width {self.hidden_width}: allowed: 1 or more")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha {self.alpha:g}: allowed 0 to 1, the injected ones' weight")


class SummaryAdapter(nn.Module):
    """Own and injected summaries in, both in the base's own scale; closed ones out, in the same.

    Args:
        config: its shape.
        mean_D: of the base's summaries.
        std_D: their deviation.
    """

    def __init__(self, config: SummaryAdapterConfig, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.config = config
        # No buffers: an engine in bf16 would round them, and a mean may be many deviations long.
        self.mean_D, self.std_D = mean_D.float(), std_D.float()
        self.hidden = nn.Linear(2 * config.summary_width, config.hidden_width)
        self.change = nn.Linear(config.hidden_width, 2 * config.summary_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the last layer says nothing yet."""
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, own_BSD: Tensor, injected_BSD: Tensor) -> Tensor:
        """Closed summaries (B, S, D) of the dtype of the own ones; a bar's are its own affair.

        Args:
            own_BSD: the model's own after the injection layer.
            injected_BSD: those from elsewhere.
        """
        dtype = own_BSD.dtype
        # In bf16 a summary minus its mean would lose what tells one bar from another.
        own_BSD, injected_BSD = (_at_least_fp32(x) for x in (own_BSD, injected_BSD))
        mean_D, std_D = self.mean_D.to(own_BSD.device), self.std_D.to(own_BSD.device)
        both = torch.cat([(x - mean_D) / std_D for x in (own_BSD, injected_BSD)], dim=-1)
        hidden = F.gelu(self.hidden(both.to(self.hidden.weight.dtype)))
        gate_BSD, residual_BSD = _at_least_fp32(self.change(hidden)).chunk(2, dim=-1)
        alpha = self.config.alpha
        blend_BSD = alpha * injected_BSD + (1 - alpha) * own_BSD
        moved_BSD = gate_BSD.tanh() * (injected_BSD - own_BSD)
        return (blend_BSD + moved_BSD + std_D * residual_BSD).to(dtype)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """A trained adapter and what it belongs to.

    Args:
        model: in evaluation mode.
        base: facts of the MuseFormer that it was trained in.
        bridge: facts of the bridge that it was trained for: model_type, weights, fingerprint.
        folder: where it comes from.
        layer: of the base, after which the bridge's summaries enter.
    """

    model: SummaryAdapter
    base: dict[str, Any]
    bridge: dict[str, Any]
    folder: Path
    layer: int

    def check_base(self, fingerprint: str) -> None:
        """Refuse another MuseFormer than the one that it was trained in.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        if self.base["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"--adapter {self.folder}: found an adapter to the model "
                f"{self.base['fingerprint'][:12]}, expected {fingerprint[:12]}; allowed: the model "
                f"that it was trained in; train one for this model with {_RECIPE}"
            )

    def check_bridge(self, bridge: LoadedBridge) -> None:
        """Refuse another bridge than the one whose summaries it has learned to read.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        found, expected = self.bridge, bridge_facts(bridge)
        if found["fingerprint"] != expected["fingerprint"]:
            raise CheckpointError(
                f"--adapter {self.folder}: found an adapter to {_named(found)}, --bridge "
                f"{bridge.folder} holds {_named(expected)}; allowed: the bridge and the weights "
                f"that it was trained for; train an adapter for this one with {_RECIPE}"
            )


def bridge_facts(bridge: LoadedBridge) -> dict[str, Any]:
    """What an adapter's folder says of the bridge that it was trained for."""
    return {
        "model_type": model_type_of(bridge.model),
        "weights": bridge.weights,
        "fingerprint": model_fingerprint(bridge.folder),
    }


def _named(facts: dict[str, Any]) -> str:
    return f"the {facts['model_type']} {facts['fingerprint'][:12]} ({facts['weights']} weights)"


def load_adapter(path: Path, device: torch.device | str = "cpu") -> LoadedAdapter:
    """Load a trained adapter.

    Args:
        path: run folder, step folder or model folder.
        device: where to compute.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_bridge_folder(path)
    if folder is None:
        found = "no such folder" if not path.is_dir() else "no adapter in it"
        raise CheckpointError(
            f"--adapter {path}: {found}; expected a run of {_RECIPE}, or its {MODEL_NAMES['raw']}/ "
            "folder"
        )
    config = read_bridge_config(folder, ADAPTERS)
    facts = config.get("bridge")
    if not isinstance(facts, dict) or not {"model_type", "weights", "fingerprint"} <= facts.keys():
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: bridge: found no facts, expected those of the bridge that it "
            "was trained for; train the adapter again"
        )
    statistics = (x.to(device) for x in load_statistics(folder, config))
    model = build_model(folder, config, ADAPTERS, *statistics)
    load_state(model, folder)
    assert isinstance(model, SummaryAdapter)
    return LoadedAdapter(
        model=model.to(device).float().eval().requires_grad_(False),
        base=config["base"],
        bridge=facts,
        folder=folder,
        layer=config["layer"],
    )
