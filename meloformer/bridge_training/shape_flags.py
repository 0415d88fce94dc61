"""The flags of a bridge's shape, which both bridges have."""

from dataclasses import dataclass
from typing import Any

from meloformer.bridge.shape import BridgeShape
from meloformer.bridge_training.config import BridgeTrainConfig
from meloformer.command_line import check_at_least


@dataclass(frozen=True, kw_only=True)
class ShapedTrainConfig(BridgeTrainConfig):
    """Flags of the training of a bridge whose shape is asked for; each bridge says what they mean.

    Args:
        bridge_width: of the stream of bars.
        bridge_layers: of the bridge.
        bridge_heads: of its attentions.
        bridge_ffn_width: of its feed-forward networks.
    """

    bridge_width: int = BridgeShape.width
    bridge_layers: int = BridgeShape.num_layers
    bridge_heads: int = BridgeShape.num_heads
    bridge_ffn_width: int = BridgeShape.ffn_width

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = ("bridge_width", "bridge_layers", "bridge_heads", "bridge_ffn_width")
        check_at_least(self, dict.fromkeys(shape, 1))

    def shape(self, text_width: int, summary_width: int) -> dict[str, Any]:
        """Fields of a `BridgeShape` between two widths."""
        return {
            "text_width": text_width,
            "summary_width": summary_width,
            "width": self.bridge_width,
            "num_layers": self.bridge_layers,
            "num_heads": self.bridge_heads,
            "ffn_width": self.bridge_ffn_width,
        }
