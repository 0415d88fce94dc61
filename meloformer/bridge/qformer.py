"""Q-Former: one learned query per bar reads all states of a text and becomes that bar's summary.

Source: Li et al. 2023 (BLIP-2): learned queries, self-attention among them, cross-attention to a
frozen encoder. Here every layer has cross-attention, as the text is short, and there is a query per
bar, where theirs have no order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from meloformer.bridge.bridges import BridgeBatch, Solver
from meloformer.bridge.projection import build_projection
from meloformer.bridge.shape import BridgeShape
from meloformer.bridge.sinusoids import sinusoids
from meloformer.errors import ConfigError

if TYPE_CHECKING:
    from meloformer.bridge.text_encoder import TextStates

# Between knowing nothing of normalised summaries, 0, and knowing all of them, 1: an optimizer moves
# it by no more than the learning rate a step.
_FIRST_GAIN = 0.5


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(BridgeShape):
    """Shape of a Q-Former, one query a bar.

    Args:
        dropout: share of each sublayer's output that training leaves out.
    """

    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout {self.dropout:g}: allowed: 0 up to below 1")


class QFormer(nn.Module):
    """Text states in, normalised summaries out; the same text gives the same summaries.

    Args:
        config: its shape.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_projection = nn.Linear(config.text_width, config.width)
        self.queries = nn.Parameter(torch.empty(config.num_queries, config.width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.projection = build_projection(config.width, config.summary_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Neighbouring bars begin alike, and a bar that no training piece reaches is no noise.
        with torch.no_grad():
            self.queries.copy_(sinusoids(torch.arange(self.config.num_queries), self.config.width))
        nn.init.constant_(self.norm.weight, _FIRST_GAIN)
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=self.config.width**-0.5)

    def forward(
        self, states_BLW: torch.Tensor, text_mask_BL: torch.Tensor, mask_BS: torch.Tensor
    ) -> torch.Tensor:
        """Normalised summaries (B, S, D).

        Args:
            states_BLW: last hidden states of the encoder, any padding.
            text_mask_BL: True where a token is real.
            mask_BS: True where a row has a bar; other bars are read by none.
        """
        num_bars = mask_BS.shape[1]
        if num_bars > self.config.num_queries:
            raise ConfigError(
                f"found {num_bars} bars; allowed: up to {self.config.num_queries}, the queries of "
                "this bridge; join several answers for more"
            )
        # Encoders differ in scale, and single dimensions of some are a hundred times the others.
        states_BLW = F.layer_norm(states_BLW.float(), states_BLW.shape[-1:])
        text_BLD = self.text_projection(states_BLW.to(self.text_projection.weight.dtype))
        x_BSD = self.queries[:num_bars].expand(mask_BS.shape[0], -1, -1)
        for layer in self.layers:
            x_BSD = layer(x_BSD, mask_BS, text_BLD, text_mask_BL)
        return self.projection(self.norm(x_BSD))

    def loss(self, batch: BridgeBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean squared error over the dimensions of the real bars; 1 is what the mean reaches."""
        states = batch.states
        predicted_BSD = self(states.states_BLW, states.mask_BL, batch.mask_BS)
        loss = regression(predicted_BSD, batch)
        return loss, {"regression": loss.detach()}

    @torch.no_grad()
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
        """Normalised summaries (B, S, D): the one answer, whatever seed, steps and solver say.

        Raises:
            ConfigError: a guidance other than 1, or more bars than queries.
        """
        if guidance != 1.0:
            raise ConfigError(
                f"--guidance {guidance:g} with a Q-Former, which has no unconditional answer to go "
                "away from; allowed: 1, or a Diffusion Bridge"
            )
        if mask_BS is None:
            mask_BS = states.mask_BL.new_ones(len(states.states_BLW), num_bars)
        return self(states.states_BLW, states.mask_BL, mask_BS)


def regression(predicted_BSD: torch.Tensor, batch: BridgeBatch) -> torch.Tensor:
    """Mean squared error of normalised summaries over the real bars, in fp32.

    Args:
        predicted_BSD: for every bar, padded ones included.
        batch: with the targets.
    """
    # Unequal shapes would be broadcast, and a mean over nonsense looks like a loss.
    assert predicted_BSD.shape == batch.summaries_BSD.shape, (
        predicted_BSD.shape,
        batch.summaries_BSD.shape,
    )
    # Garbage in padded bars is taken out before it is squared: a NaN would come back in gradients.
    error_BSD = (predicted_BSD.float() - batch.summaries_BSD.float()).masked_fill(
        ~batch.mask_BS[..., None], 0.0
    )
    return batch.mean_over_bars(error_BSD.square().mean(dim=-1))


class _Layer(nn.Module):
    """Self-attention over bars, cross-attention to the text, feed-forward; norms come first."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.ffn_norm = (
            nn.LayerNorm(config.width) for _ in range(3)
        )
        self.self_attention = _Attention(config)
        self.cross_attention = _Attention(config)
        self.ffn_in = nn.Linear(config.width, config.ffn_width)
        self.ffn_out = nn.Linear(config.ffn_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BSD: torch.Tensor,
        mask_BS: torch.Tensor,
        text_BLD: torch.Tensor,
        text_mask_BL: torch.Tensor,
    ) -> torch.Tensor:
        normed_BSD = self.self_norm(x_BSD)
        x_BSD = x_BSD + self.dropout(self.self_attention(normed_BSD, normed_BSD, mask_BS))
        attended_BSD = self.cross_attention(self.cross_norm(x_BSD), text_BLD, text_mask_BL)
        x_BSD = x_BSD + self.dropout(attended_BSD)
        hidden_BSF = F.gelu(self.ffn_in(self.ffn_norm(x_BSD)))
        return x_BSD + self.dropout(self.ffn_out(hidden_BSF))


class _Attention(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.width, config.width) for _ in range(4)
        )

    def forward(
        self, x_BSD: torch.Tensor, read_BLD: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        q_BHSK, k_BHLK, v_BHLK = (
            linear(source).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, source in (
                (self.query, x_BSD),
                (self.key, read_BLD),
                (self.value, read_BLD),
            )
        )
        attended_BHSK = F.scaled_dot_product_attention(
            q_BHSK, k_BHLK, v_BHLK, attn_mask=mask_BL[:, None, None, :]
        )
        return self.out(attended_BHSK.transpose(1, 2).flatten(2))
