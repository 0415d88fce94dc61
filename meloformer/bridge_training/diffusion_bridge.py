"""The Diffusion Bridge's own flags, and what they make of its training."""

from dataclasses import dataclass

from meloformer.bridge.bridges import Bridge
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.flow import Times
from meloformer.bridge_training.objectives import Objective, OwnLoss
from meloformer.bridge_training.prepare import BridgeKind
from meloformer.bridge_training.shape_flags import ShapedTrainConfig
from meloformer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class DiffusionBridgeTrainConfig(ShapedTrainConfig):
    """Flags of launch/train_diffusion_bridge.py.

    Args:
        ema: decay of the moving average of the weights, written to model_ema/, which a flow is
            better sampled with, and validated beside the weights themselves; 0 for none.
        bridge_width: of the stream of bars.
        bridge_layers: of the transformer.
        bridge_heads: of its attentions.
        bridge_ffn_width: of its feed-forward networks.
        condition_drop: share of rows that are trained without their text, which --guidance needs.
        times: how the times of the flow are drawn.
    """

    ema: float = 0.999
    condition_drop: float = DiffusionBridgeConfig.condition_drop
    times: Times = DiffusionBridgeConfig.times

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_config(text_width=1, summary_width=1)

    def model_config(self, text_width: int, summary_width: int) -> DiffusionBridgeConfig:
        """Shape of the bridge between two widths."""
        return DiffusionBridgeConfig(
            **self.shape(text_width, summary_width),
            condition_drop=self.condition_drop,
            times=self.times,
        )

    @property
    def kind(self) -> BridgeKind:
        """What the common training has to know of a Diffusion Bridge."""

        def build(text_width: int, summary_width: int) -> Bridge:
            return DiffusionBridge(self.model_config(text_width, summary_width))

        def objective(bridge: Bridge, ranks: Ranks) -> Objective:
            return OwnLoss(bridge)

        return BridgeKind(
            build=build,
            objective=objective,
            objective_settings={},
            most_bars=DiffusionBridgeConfig.num_queries,
        )
