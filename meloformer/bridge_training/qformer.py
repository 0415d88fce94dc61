"""The Q-Former's own flags, and what they make of its training."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from meloformer.bridge.bridges import Bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.targets import SummaryTargets
from meloformer.bridge_training.objectives import (
    ContrastiveConfig,
    Objective,
    QFormerObjective,
    TokenTerm,
    check_weight,
)
from meloformer.bridge_training.prepare import BridgeKind, of_targets
from meloformer.bridge_training.shape_flags import ShapedTrainConfig
from meloformer.bridge_training.token_loss import TokenLoss
from meloformer.errors import ConfigError
from meloformer.model.injection import INJECTION_LAYER, Injection
from meloformer.model.weights import find_model_folder, load_model, load_weights
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class QFormerTrainConfig(ShapedTrainConfig):
    """Flags of launch/train_qformer.py.

    Args:
        bridge_width: of the queries.
        bridge_layers: of the Q-Former.
        bridge_heads: of its attentions.
        bridge_ffn_width: of its feed-forward networks.
        dropout: share of each sublayer's output that training leaves out.
        inject_after: layer of the base after which the answers enter: 3, whose summaries the
            targets are, or 0, the input: a soft prompt of one vector a bar. There the base's own
            summaries are all alike, so that there is nothing to regress to, and the base's token
            loss trains the bridge alone.
        regression_weight: of the squared error to the targets; 0 leaves it out. 1 if not given,
            and 0 at the input.
        token_loss_weight: of the frozen base's own nats per token, with the answers injected; 0
            leaves it out. 0 if not given, and 1 at the input. Needs --checkpoint and --data, and
            the time of a forward and a backward pass of the base.
        token_loss_alpha: weight of the answers in the blend as which the base's closed summaries
            begin, in the token loss; generation takes the same unless it is given another.
        data: shards that the targets were extracted from, for the token loss.
        contrastive: the term against collapse; it compares answers with the targets too.
    """

    dropout: float = QFormerConfig.dropout
    inject_after: int = INJECTION_LAYER
    regression_weight: float | None = None
    token_loss_weight: float | None = None
    token_loss_alpha: float = Injection.alpha
    data: str | None = None
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("regression_weight", self.regression_weight)
        check_weight("token_loss_weight", self.token_loss_weight)
        if not 0 <= self.token_loss_alpha <= 1:
            raise ConfigError(f"--token_loss_alpha {self.token_loss_alpha:g}: allowed: 0 to 1")
        self._check_terms()
        self.model_config(text_width=1, summary_width=1)

    def _check_terms(self) -> None:
        """Refuse losses that nothing could be learned from, or that need what is not given."""
        if self.inject_after not in (INJECTION_LAYER, 0):
            raise ConfigError(
                f"--inject_after {self.inject_after}: allowed: {INJECTION_LAYER}, whose summaries "
                "the targets are, or 0, the input"
            )
        if not self.inject_after:
            weights = {
                "regression_weight": self.regression_weight,
                "contrastive_weight": self.contrastive.contrastive_weight,
            }
            for name, weight in weights.items():
                if weight:
                    raise ConfigError(
                        f"--{name} {weight:g} with --inject_after 0: found no summaries at the "
                        "input to compare answers with; allowed: the base's token loss alone"
                    )
        if not (self.regression or self.token_loss):
            raise ConfigError(
                "--token_loss_weight 0 with nothing beside it to learn from (--inject_after "
                f"{self.inject_after}, --regression_weight 0); allowed: above 0"
            )
        if not self.token_loss and self.token_loss_alpha != Injection.alpha:
            raise ConfigError(
                f"--token_loss_alpha {self.token_loss_alpha:g} without a token loss: allowed: "
                "beside --token_loss_weight above 0"
            )
        if self.token_loss and (self.checkpoint is None or self.data is None):
            raise ConfigError(
                f"a token loss (--inject_after {self.inject_after}, --token_loss_weight "
                f"{self.token_loss:g}) without "
                f"{'--checkpoint' if self.checkpoint is None else '--data'}; allowed: with the "
                "base's run and the shards that the targets were extracted from"
            )

    @property
    def regression(self) -> float:
        """Weight of the regression."""
        if self.regression_weight is not None:
            return self.regression_weight
        return 1.0 if self.inject_after else 0.0

    @property
    def token_loss(self) -> float:
        """Weight of the base's token loss."""
        if self.token_loss_weight is not None:
            return self.token_loss_weight
        return 0.0 if self.inject_after else 1.0

    def model_config(self, text_width: int, summary_width: int) -> QFormerConfig:
        """Shape of the Q-Former between two widths."""
        return QFormerConfig(
            **self.shape(text_width, summary_width),
            dropout=self.dropout,
        )

    @property
    def kind(self) -> BridgeKind:
        """What the common training has to know of a Q-Former."""

        def build(text_width: int, summary_width: int) -> Bridge:
            return QFormer(self.model_config(text_width, summary_width))

        def objective(bridge: Bridge, ranks: Ranks) -> Objective:
            return QFormerObjective(
                cast(QFormer, bridge),
                self.contrastive,
                regression_weight=self.regression,
                world_size=ranks.world_size,
                rank=ranks.rank,
                token_term=self._token_term(ranks),
            )

        return BridgeKind(
            build=build,
            objective=objective,
            objective_settings=self._objective_settings(),
            most_bars=QFormerConfig.num_queries,
            tokens_from=self.data if self.token_loss else None,
            layer=self.inject_after,
            statistics=self._statistics,
            extra={"token_loss_alpha": self.token_loss_alpha} if self.token_loss else {},
        )

    def _objective_settings(self) -> dict[str, Any]:
        settings = {
            **asdict(self.contrastive),
            "contrastive_weight": self.contrastive.weight_beside(self.regression),
            "token_loss_weight": self.token_loss,
            "regression_weight": self.regression,
            "inject_after": self.inject_after,
        }
        # The usual one is left out, so that runs which are older than the flag can go on.
        if self.token_loss_alpha != Injection.alpha:
            settings["token_loss_alpha"] = self.token_loss_alpha
        return settings

    def _statistics(self, targets: SummaryTargets) -> tuple[Tensor, Tensor]:
        """What answers are normalised by: the targets, or what the base has at its input."""
        if self.inject_after:
            return of_targets(targets)
        assert self.checkpoint is not None
        return statistics_of_input(find_model_folder(self.checkpoint))

    def _token_term(self, ranks: Ranks) -> TokenTerm | None:
        if not self.token_loss:
            return None
        assert self.checkpoint is not None
        mean_D, std_D = self._statistics(SummaryTargets.open(self.targets))
        model = load_model(find_model_folder(self.checkpoint), str(ranks.device))
        if ranks.device.type == "cuda":
            model = model.bfloat16()
        return TokenTerm(
            loss=TokenLoss(model, mean_D, std_D),
            weight=self.token_loss,
            layer=self.inject_after,
            alpha=self.token_loss_alpha,
        )


def statistics_of_input(model_folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (D,) float32, of answers that enter at a base's input.

    The mean is 0, and the deviation of every dimension that of the vector which all summaries begin
    as there. Norms take the scale out again; what it decides is how soon the layers' own sums
    outweigh what has entered.

    Args:
        model_folder: of the base.

    Raises:
        CheckpointError: the weights are missing or damaged.
    """
    start_D = load_weights(model_folder)["summary_start"].float()
    return torch.zeros_like(start_D), start_D.square().mean().sqrt().expand_as(start_D).clone()
