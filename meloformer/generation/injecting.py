"""How summaries from elsewhere enter a model: as flags say it, and with what was loaded for it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meloformer.bridge.adapter import LoadedAdapter, load_adapter
from meloformer.bridge.bridges import LoadedBridge
from meloformer.errors import CheckpointError, GenerationError
from meloformer.model.injection import INJECTION_LAYER, Injection, Strategy


@dataclass(frozen=True, kw_only=True)
class Injecting:
    """What summaries from elsewhere do to those that the model makes itself.

    Args:
        strategy: see `InjectingConfig`.
        alpha: see `InjectingConfig`.
        adapter: for strategy `adapter`, and with no other.
        layer: after which they enter.
    """

    strategy: Strategy = "blend"
    alpha: float = Injection.alpha
    adapter: LoadedAdapter | None = None
    layer: int = INJECTION_LAYER

    def injection(self, summaries_BSD: Tensor, mask_BS: Tensor | None = None) -> Injection:
        """Summaries in the base's own scale as they are injected.

        Args:
            summaries_BSD: one a bar.
            mask_BS: the bars that have one; every one of them if not given.
        """
        if mask_BS is None:
            mask_BS = torch.ones(
                summaries_BSD.shape[:2], dtype=torch.bool, device=summaries_BSD.device
            )
        return Injection(
            summaries_BSD=summaries_BSD,
            mask_BS=mask_BS,
            strategy=self.strategy,
            alpha=self.alpha,
            adapter=None if self.adapter is None else self.adapter.model,
            layer=self.layer,
        )

    def describe(self) -> str:
        """In words, for a report."""
        how = f"blend, alpha {self.alpha:g}" if self.strategy == "blend" else self.strategy
        return f"{how}, after layer {self.layer}"


@dataclass(frozen=True, kw_only=True)
class InjectingConfig:
    """What summaries from elsewhere do to those that the model makes itself.

    Args:
        strategy: replace them, blend with them, or let a trained adapter say what becomes of both.
        alpha: weight of the injected ones in a blend; 1 replaces. If not given, what the bridge was
            trained with, and 0.7 where it was trained with none.
        adapter: run folder of launch/train_adapter.py, for --strategy adapter.
    """

    strategy: Strategy = "blend"
    alpha: float | None = None
    adapter: Path | None = None

    def __post_init__(self) -> None:
        if self.strategy == "adapter" and self.adapter is None:
            raise GenerationError(
                "--strategy adapter without --adapter: allowed: the run of launch/train_adapter.py "
                "that was trained for the bridge; or --strategy replace or blend"
            )
        if self.strategy != "adapter" and self.adapter is not None:
            raise GenerationError(
                f"--adapter {self.adapter} with --strategy {self.strategy}: allowed: beside "
                "--strategy adapter"
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise GenerationError(
                f"--alpha {self.alpha:g}: allowed 0 to 1, the injected ones' weight"
            )

    def load(
        self, fingerprint: str, device: torch.device | str, bridge: LoadedBridge | None = None
    ) -> Injecting:
        """The same with the adapter, where one is wanted.

        Args:
            fingerprint: of the model that is injected into.
            device: where it runs.
            bridge: whose summaries they will be; None where they come from a piece or from a file,
                which do not say what has made them.

        Raises:
            CheckpointError: there is no such adapter, or it is of another model or bridge.
        """
        layer = INJECTION_LAYER if bridge is None else bridge.layer
        alpha = self.alpha
        if alpha is None and bridge is not None:
            alpha = bridge.token_loss_alpha
        if alpha is None:
            alpha = Injection.alpha
        if self.adapter is None:
            return Injecting(strategy=self.strategy, alpha=alpha, layer=layer)
        adapter = load_adapter(self.adapter, device)
        adapter.check_base(fingerprint)
        if bridge is not None:
            adapter.check_bridge(bridge)
        if adapter.layer != layer:
            raise CheckpointError(
                f"--adapter {adapter.folder}: found an adapter to summaries that enter after layer "
                f"{adapter.layer}, these enter after layer {layer}; allowed: the bridge that it "
                "was trained for, or --strategy blend"
            )
        return Injecting(strategy=self.strategy, alpha=alpha, adapter=adapter, layer=layer)
