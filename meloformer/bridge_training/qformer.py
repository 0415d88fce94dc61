"""The Q-Former's own flags, and what they make of its training."""

from dataclasses import asdict, dataclass, field
from typing import cast

from torch import nn

from meloformer.bridge.bridges import Bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge_training.config import BridgeTrainConfig
from meloformer.bridge_training.objectives import ContrastiveConfig, QFormerObjective
from meloformer.bridge_training.prepare import BridgeKind
from meloformer.errors import ConfigError
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
        contrastive: the term against collapse.
    """

    bridge_width: int = QFormerConfig.width
    bridge_layers: int = QFormerConfig.num_layers
    bridge_heads: int = QFormerConfig.num_heads
    bridge_ffn_width: int = QFormerConfig.ffn_width
    dropout: float = QFormerConfig.dropout
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bridge_width", "bridge_layers", "bridge_heads", "bridge_ffn_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 1 or more")
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
            )

        return BridgeKind(
            build=build, objective=objective, objective_settings=asdict(self.contrastive)
        )
