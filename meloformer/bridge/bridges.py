"""What a bridge is: text states in, one summary per bar out; and how to load a trained one.

A bridge speaks of normalised summaries; `LoadedBridge` returns them in the base's own scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from meloformer.bridge.bridge_folder import (
    CONFIG_NAME,
    HEADS_NAME,
    MODELS,
    STATISTICS_NAME,
    find_bridge_folder,
    read_bridge_config,
)
from meloformer.bridge.flow import Solver
from meloformer.errors import CheckpointError
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.weights import MODEL_NAMES, WEIGHTS_NAME

if TYPE_CHECKING:  # the encoders import transformers, which takes seconds
    from meloformer.bridge.text_encoder import TextStates

BridgeWeights = Literal["raw", "ema", "auto"]


@dataclass(frozen=True, kw_only=True)
class BridgeBatch:
    """Texts, and the summaries of the windows that they describe.

    Args:
        states: of B texts.
        summaries_BSD: normalised, float32; what padded bars hold does not matter.
        mask_BS: True where a row has a bar.
        row_seeds: B numbers from which a row draws what is random in its loss, so that the draw
            belongs to the row and not to its place in a batch or on a rank.
        pieces: B numbers, equal where two rows are windows of one piece; none given means that all
            rows are of different pieces.
        tokens: ids of the B windows; none unless the loss asks the base for its own.
        num_bars: bars that the loss is averaged over: those of the global batch divided by the
            ranks; those of this batch if not given.
    """

    states: "TextStates"
    summaries_BSD: torch.Tensor
    mask_BS: torch.Tensor
    row_seeds: Sequence[int]
    pieces: Sequence[int] = ()
    tokens: Sequence[np.ndarray] = ()
    num_bars: float | None = None

    @property
    def num_targets(self) -> int:
        """Tokens of the B windows that a base foretells: all but the first of each."""
        return sum(len(ids) - 1 for ids in self.tokens)

    def mean_over_bars(self, loss_BS: torch.Tensor) -> torch.Tensor:
        """Mean of one number per bar over the real bars, however the global batch is cut.

        Args:
            loss_BS: a number per bar.

        >>> import torch
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> batch = BridgeBatch(
        ...     states=None, summaries_BSD=torch.zeros(2, 2, 1), mask_BS=mask, row_seeds=(0, 1)
        ... )
        >>> float(batch.mean_over_bars(torch.tensor([[1.0, 2.0], [6.0, float("nan")]])))
        3.0
        """
        assert loss_BS.shape == self.mask_BS.shape, (loss_BS.shape, self.mask_BS.shape)
        total = loss_BS.masked_fill(~self.mask_BS, 0.0).sum()
        if self.num_bars is None:
            return total / self.mask_BS.sum()
        return total / self.num_bars


class Bridge(Protocol):
    """A module that turns text states into summaries."""

    @property
    def config(self) -> Any:
        """Its frozen settings."""

    def loss(self, batch: BridgeBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch, and what to write down of it; averaged by `mean_over_bars`."""

    def sample(
        self,
        states: "TextStates",
        num_bars: int,
        *,
        seed: int | Sequence[int],
        steps: int = 10,
        guidance: float = 1.0,
        solver: Solver = "euler",
        mask_BS: torch.Tensor | None = None,
        first_bar: int = 0,
    ) -> torch.Tensor:
        """Normalised summaries (B, S, D); a row does not depend on the others of its batch.

        `mask_BS` is True at the bars that each row wants, which come first; all S if not given. The
        others change nothing of these. `first_bar` is where they begin in their piece: windows that
        share a bar begin with the same noise there.
        """


@dataclass(frozen=True, kw_only=True)
class LoadedBridge:
    """A trained bridge and all that it needs to be used.

    Args:
        model: a `Bridge`, in evaluation mode.
        mean_D: of the base's summaries, or 0 where the layer is another than theirs.
        std_D: their deviation, or that of the base's input.
        base: facts of the MuseFormer whose summaries it makes, as in the targets' manifest.
        encoder: facts of the text encoder, as in the manifest of the states.
        heads: attribute heads; None where the folder holds none.
        weights: which ones these are.
        folder: where they come from.
        layer: of the base, after which the answers enter; 0 is the input.
        trained_bars: of the longest window that it was trained on; bars beyond have queries or
            positions that no gradient has reached.
        token_loss_alpha: weight that its answers had in the blend when it was trained by the base's
            own loss; None where it was not.
    """

    model: Bridge
    mean_D: torch.Tensor
    std_D: torch.Tensor
    base: dict[str, Any]
    encoder: dict[str, Any]
    heads: Any
    weights: Literal["raw", "ema"]
    folder: Path
    layer: int = INJECTION_LAYER
    trained_bars: int
    token_loss_alpha: float | None = None

    @torch.no_grad()
    def summaries(
        self,
        states: "TextStates",
        num_bars: int,
        *,
        seed: int | Sequence[int] = 0,
        steps: int = 10,
        guidance: float = 1.0,
        solver: Solver = "euler",
        first_bar: int = 0,
    ) -> torch.Tensor:
        """Summaries (B, S, D) in the base's own scale, for `Injection`.

        Args:
            states: of B texts, from the encoder that `encoder` names.
            num_bars: S, at most what the bridge has queries for; `trained_bars` to be sure of it.
            seed: of the noise, one for each row, or one with which all rows begin from the same;
                a Q-Former draws none.
            steps: of the solver.
            guidance: how far to go beyond the unconditional answer; 1 is the plain answer.
            solver: of the flow.
            first_bar: of these bars in their piece: windows that share a bar begin with the same
                noise there.
        """
        normalised = self.model.sample(
            states,
            num_bars,
            seed=seed,
            steps=steps,
            guidance=guidance,
            solver=solver,
            first_bar=first_bar,
        )
        return normalised.float() * self.std_D + self.mean_D

    def check_base(self, fingerprint: str) -> None:
        """Refuse another MuseFormer than the one whose summaries the bridge has learned.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        if self.base["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{self.folder}: found a bridge to the model {self.base['fingerprint'][:12]}, "
                f"expected {fingerprint[:12]}; allowed: the model whose summaries it was trained "
                "on; train a bridge for this one"
            )

    def check_encoder(self, fingerprint: str) -> None:
        """Refuse states of another encoder.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        if self.encoder["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{self.folder}: found a bridge from the encoder {self.encoder.get('name')} "
                f"({self.encoder['fingerprint'][:12]}), expected {fingerprint[:12]}; give "
                f"--text_encoder {self.encoder.get('name')}"
            )


def load_bridge(
    path: Path, device: torch.device | str = "cpu", weights: BridgeWeights = "raw"
) -> LoadedBridge:
    """Load a trained bridge.

    Args:
        path: run folder, step folder or model folder.
        device: where to compute.
        weights: those of the last step, their average, or the average where there is one.

    Raises:
        CheckpointError: there is none, none of those weights, or it is damaged.
    """
    which: Literal["raw", "ema"] = "raw" if weights == "raw" else "ema"
    folder = find_bridge_folder(path, which)
    if folder is None and weights == "auto":
        which, folder = "raw", find_bridge_folder(path, "raw")
    if folder is None and which == "ema" and (other := find_bridge_folder(path, "raw")):
        raise CheckpointError(
            f"{path}: found no averaged weights ({MODEL_NAMES['ema']}/) beside {other}; allowed: "
            "the raw weights, or a bridge that was trained with --ema 0.999"
        )
    if folder is None:
        found = "no such folder" if not path.is_dir() else "no bridge in it"
        raise CheckpointError(
            f"{path}: {found}; expected a run of launch/train_qformer.py or of "
            f"launch/train_diffusion_bridge.py, or its {MODEL_NAMES['raw']}/ folder"
        )
    config = read_bridge_config(folder)
    model = build_model(folder, config, MODELS)
    load_state(model, folder)
    mean_D, std_D = load_statistics(folder, config)
    bridge = cast(Bridge, model.to(device).float().eval().requires_grad_(False))
    return LoadedBridge(
        model=bridge,
        mean_D=mean_D.to(device),
        std_D=std_D.to(device),
        base=config["base"],
        encoder=config["encoder"],
        heads=_load_heads(folder, device, config["encoder"]["fingerprint"]),
        weights=which,
        folder=folder,
        layer=config["layer"],
        trained_bars=_trained_bars(folder, config, bridge.config.num_queries),
        token_loss_alpha=_token_loss_alpha(folder, config),
    )


def _trained_bars(folder: Path, config: dict[str, Any], num_queries: int) -> int:
    """Bars of the longest window of a bridge's training; all where it is older than the figure."""
    bars = config.get("trained_bars", num_queries)
    if type(bars) is not int or not 1 <= bars <= num_queries:
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: trained_bars: found {bars!r}, expected 1 to {num_queries}; "
            "train the bridge again"
        )
    return bars


def _token_loss_alpha(folder: Path, config: dict[str, Any]) -> float | None:
    alpha = config.get("token_loss_alpha")
    if alpha is None:
        return None
    if type(alpha) not in (int, float) or not 0 <= alpha <= 1:
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: token_loss_alpha: found {alpha!r}, expected 0 to 1; train "
            "the bridge again"
        )
    return float(alpha)


def build_model(
    folder: Path, config: dict[str, Any], models: Mapping[str, tuple[str, str, str]], *more: Any
) -> nn.Module:
    """The model that config.json speaks of, without weights.

    Args:
        folder: of the model, for messages.
        config: what `read_bridge_config` has read.
        models: where each kind lives.
        more: what its constructor takes besides the settings.

    Raises:
        CheckpointError: settings that it does not have.
    """
    module_name, model_name, config_name = models[config["model_type"]]
    module = import_module(module_name)
    config_class = getattr(module, config_name)
    known = {key: config[key] for key in config_class.__dataclass_fields__ if key in config}
    try:
        settings = config_class(**known)
    except TypeError as error:
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: found settings that do not fit ({error}); load it with the "
            "release that wrote it"
        ) from error
    with torch.device("meta"):
        return getattr(module, model_name)(settings, *more)


def load_state(model: nn.Module, folder: Path) -> None:
    """Fill a model of `build_model` with the weights of its folder.

    Raises:
        CheckpointError: they cannot be read, or are of another model.
    """
    state = _read(folder / WEIGHTS_NAME)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder / WEIGHTS_NAME}: {name}: found {found.get(name, 'none')}, expected "
                f"{expected.get(name, 'none')}; weights and {CONFIG_NAME} are of two bridges"
            )
    model.load_state_dict(state, assign=True)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); expected tensors of a bridge; take another "
            "checkpoint"
        ) from error


def load_statistics(folder: Path, config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, (D,) float32, that undo normalising.

    Raises:
        CheckpointError: they cannot be read, or undoing anything with them would be nonsense.
    """
    statistics = _read(folder / STATISTICS_NAME)
    mean_D, std_D = (_statistic(statistics, key, config, folder) for key in ("mean", "std"))
    return mean_D, std_D


def _statistic(
    statistics: dict[str, torch.Tensor], key: str, config: dict[str, Any], folder: Path
) -> torch.Tensor:
    """A statistic, refused where undoing the normalisation with it would be nonsense."""
    value = statistics.get(key)
    width = config["summary_width"]
    if value is None or tuple(value.shape) != (width,):
        found = "none" if value is None else str(tuple(value.shape))
        raise CheckpointError(
            f"{folder / STATISTICS_NAME}: {key}: found {found}, expected ({width},); train the "
            "bridge again"
        )
    if not torch.isfinite(value).all() or (key == "std" and not (value > 0).all()):
        raise CheckpointError(
            f"{folder / STATISTICS_NAME}: {key}: found values that are not finite, or a deviation "
            "of 0; expected the statistics of the targets"
        )
    return value.float()


def _load_heads(folder: Path, device: torch.device | str, encoder_fingerprint: str) -> Any:
    if not (folder / HEADS_NAME).is_file():
        return None
    load_heads = import_module("meloformer.bridge.attribute_heads").load_heads
    return load_heads(folder, device, encoder_fingerprint=encoder_fingerprint)
