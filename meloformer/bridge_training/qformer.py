"""The Q-Former's own flags, and what they make of its training."""

from dataclasses import asdict, dataclass, field
from typing import cast

from torch import nn

from meloformer.bridge.bridges import Bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.targets import SummaryTargets
from meloformer.bridge_training.config import BridgeTrainConfig
from meloformer.bridge_training.objectives import ContrastiveConfig, QFormerObjective
from meloformer.bridge_training.prepare import BridgeKind
from meloformer.bridge_training.token_loss import TokenLoss
from meloformer.errors import ConfigError
from meloformer.model.weights import find_model_folder, load_model
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class QFormerTrainConfig(BridgeTrainConfig):
    """Flags of launch/train_qformer.py.

    Args:
        bridge_width: of the queries.
        bridge_layers: of the Q-Former.
        bridge_heads: of its attentions.
        bridge_ffn_width: of its feed-forward networks.
        dropout: share of each sublayer's output that training leaves out.
        token_loss_weight: of the frozen base's own nats per token, with the answers injected,
            beside the regression; 0 leaves it out. Needs --checkpoint and --data, and the time of a
            forward and a backward pass of the base.
        data: shards that the targets were extracted from, for --token_loss_weight.
        contrastive: the term against collapse.
    """

    bridge_width: int = QFormerConfig.width
    bridge_layers: int = QFormerConfig.num_layers
    bridge_heads: int = QFormerConfig.num_heads
    bridge_ffn_width: int = QFormerConfig.ffn_width
    dropout: float = QFormerConfig.dropout
    token_loss_weight: float = 0.0
    data: str | None = None
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bridge_width", "bridge_layers", "bridge_heads", "bridge_ffn_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 1 or more")
        if not 0 <= self.token_loss_weight < float("inf"):
            raise ConfigError(f"--token_loss_weight {self.token_loss_weight:g}: allowed: 0 or more")
        if self.token_loss_weight and (self.checkpoint is None or self.data is None):
            raise ConfigError(
                f"--token_loss_weight {self.token_loss_weight:g} without "
                f"{'--checkpoint' if self.checkpoint is None else '--data'}; allowed: with the "
                "base's run and the shards that the targets were extracted from"
            )
        self.model_config(text_width=1, summary_width=1)

    def model_config(self, text_width: int, summary_width: int) -> QFormerConfig:
        """Shape of the Q-Former between two widths."""
        return QFormerConfig(
            text_width=text_width,
            summary_width=summary_width,
            width=self.bridge_width,
            num_layers=self.bridge_layers,
            num_heads=self.bridge_heads,
            ffn_width=self.bridge_ffn_width,
            dropout=self.dropout,
        )

    @property
    def kind(self) -> BridgeKind:
        """What the common training has to know of a Q-Former."""

        def build(text_width: int, summary_width: int) -> Bridge:
            return QFormer(self.model_config(text_width, summary_width))

        def objective(bridge: Bridge, ranks: Ranks) -> nn.Module:
            return QFormerObjective(
                cast(QFormer, bridge),
                self.contrastive,
                world_size=ranks.world_size,
                rank=ranks.rank,
                token_loss=self._token_loss(ranks),
            )

        return BridgeKind(
            build=build,
            objective=objective,
            objective_settings={
                **asdict(self.contrastive),
                "token_loss_weight": self.token_loss_weight,
            },
            tokens_from=self.data if self.token_loss_weight else None,
        )

    def _token_loss(self, ranks: Ranks) -> tuple[TokenLoss, float] | None:
        if not self.token_loss_weight:
            return None
        assert self.checkpoint is not None
        targets = SummaryTargets.open(self.targets)
        model = load_model(find_model_folder(self.checkpoint), str(ranks.device))
        if ranks.device.type == "cuda":
            model = model.bfloat16()
        return TokenLoss(model, targets.mean, targets.std), self.token_loss_weight
