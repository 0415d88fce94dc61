"""What both bridges are built by: the widths on their two sides, and those between them."""

from dataclasses import dataclass

from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BridgeShape:
    """Shape of a transformer from text states to summaries.

    Args:
        text_width: W of the text states.
        summary_width: D of the base's summaries.
        num_queries: most bars of an answer.
        width: of the stream of bars.
        num_layers: each with self-attention, cross-attention and a feed-forward network.
        num_heads: of each attention.
        ffn_width: of the feed-forward networks.

    Raises:
        ConfigError: heads that do not share out the width.
    """

    text_width: int
    summary_width: int
    num_queries: int = 160
    width: int = 512
    num_layers: int = 6
    num_heads: int = 8
    ffn_width: int = 2048

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"--bridge_width {self.width} with {self.num_heads} heads; allowed: a multiple of "
                f"{2 * self.num_heads}"
            )
