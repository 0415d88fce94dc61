"""Diffusion Bridge: a rectified flow from noise to the summaries of a piece, under its text.

A transformer over bars with bar positions: each layer reads the other bars, all states of the
text, and the time of the flow through adaptive layer norms that begin at zero. Shape suffixes
beside those of the model: L tokens of a text, W width of its states, E inner width, M modulations.

Source: Peebles and Xie 2022, "Scalable Diffusion Models with Transformers", adaLN-zero; Chen et al.
2023, "PixArt-alpha", section 2.3, one modulation network for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge.flow import (
    Solver,
    Times,
    draw_times,
    guided,
    noise_of_rows,
    path_at,
    solve,
)
from meloformer.bridge.shape import BridgeShape
from meloformer.bridge.sinusoids import sinusoids
from meloformer.errors import ConfigError

if TYPE_CHECKING:  # the encoders import transformers, which takes seconds
    from meloformer.bridge.text_encoder import TextStates

# Shift, scale and gate of each of the three parts of a layer.
_MODULATIONS = 9
# The flow's time, 0 to 1, as the wave lengths of positions want it.
_TIMES_COUNTED = 1000.0


@dataclass(frozen=True, kw_only=True)
class DiffusionBridgeConfig(BridgeShape):
    """Everything that decides the function which the weights compute, and its training's odds.

    Args:
        condition_drop: share of rows that are trained without their text, for guidance.
        times: law of the times of training.
    """

    condition_drop: float = 0.1
    times: Times = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.condition_drop < 1:
            raise ConfigError(f"--condition_drop {self.condition_drop:g}: allowed: 0 up to below 1")


@dataclass(frozen=True)
class ReadText:
    """What every step of a flow reads of its texts, computed once.

    Args:
        keys_values: of each layer, (B, H, L, K) each.
        mask: (B, 1, 1, L), True where there is something to read.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor


class BridgeLayer(nn.Module):
    """Bars read bars, bars read the text, then the feed-forward network."""

    def __init__(self, config: DiffusionBridgeConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.modulation_ME = nn.Parameter(torch.empty(_MODULATIONS, width))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.text_query = nn.Linear(width, width)
        self.text_key_value = nn.Linear(width, 2 * width)
        self.text_out = nn.Linear(width, width)
        self.ffn_in = nn.Linear(width, config.ffn_width)
        self.ffn_out = nn.Linear(config.ffn_width, width)

    def keys_values(self, text_BLE: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, L, K) keys and values of a text."""
        key_BLE, value_BLE = self.text_key_value(text_BLE).chunk(2, dim=-1)
        return self._heads(key_BLE), self._heads(value_BLE)

    def forward(
        self,
        x_BSE: Tensor,
        time_BME: Tensor,
        bars: Tensor,
        text: tuple[Tensor, Tensor],
        text_mask: Tensor,
    ) -> Tensor:
        """One layer.

        Args:
            x_BSE: stream of bars.
            time_BME: modulations that all layers share.
            bars: (B, 1, 1, S), True where a bar may be read.
            text: `keys_values` of the text.
            text_mask: (B, 1, 1, L).
        """
        modulation = (time_BME + self.modulation_ME).unsqueeze(2).unbind(1)
        shift, scale, gate = modulation[:3]
        qkv = self.query_key_value(_modulated(x_BSE, shift, scale)).chunk(3, dim=-1)
        q_BHSK, k_BHSK, v_BHSK = map(self._heads, qkv)
        read_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, attn_mask=bars)
        x_BSE = x_BSE + gate * self.attention_out(read_BHSK.transpose(1, 2).flatten(2))

        shift, scale, gate = modulation[3:6]
        q_BHSK = self._heads(self.text_query(_modulated(x_BSE, shift, scale)))
        k_BHLK, v_BHLK = text
        read_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHLK, v_BHLK, attn_mask=text_mask)
        x_BSE = x_BSE + gate * self.text_out(read_BHSK.transpose(1, 2).flatten(2))

        shift, scale, gate = modulation[6:]
        hidden_BSF = F.gelu(self.ffn_in(_modulated(x_BSE, shift, scale)), approximate="tanh")
        return x_BSE + gate * self.ffn_out(hidden_BSF)

    def _heads(self, x_BNE: Tensor) -> Tensor:
        return x_BNE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DiffusionBridge(nn.Module):
    """The velocity of a flow from noise to normalised summaries, one per bar, given a text.

    Args:
        config: what the weights compute.
    """

    def __init__(self, config: DiffusionBridgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(config.text_width, width)
        # A module of its own: stage 3 of ZeRO gathers weights as modules are called.
        self.null_text = nn.Embedding(1, width)
        self.summary_in = nn.Linear(config.summary_width, width)
        self.time_in = nn.Linear(width, width)
        self.time_hidden = nn.Linear(width, width)
        self.time_out = nn.Linear(width, _MODULATIONS * width)
        self.layers = nn.ModuleList(BridgeLayer(config) for _ in range(config.num_layers))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.summary_out = nn.Linear(width, config.summary_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; modulations and the way out begin at zero.

        So every layer begins as none, and opens its gates as fast as it is of use. What it then
        lets through has to be of the size of its input: weights of one small size for all widths
        leave a narrow bridge deaf to its text, since noised summaries alone say what they are soon
        after the start of a flow.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, BridgeLayer):
                nn.init.zeros_(module.modulation_ME)
        for closed in (self.time_out, self.final_modulation, self.summary_out):
            nn.init.zeros_(closed.weight)
        nn.init.normal_(self.null_text.weight)

    def read_text(
        self, states_BLW: Tensor, mask_BL: Tensor, without_B: Tensor | None = None
    ) -> ReadText:
        """Keys and values of texts, for all layers.

        Args:
            states_BLW: of the text encoder.
            mask_BL: True for real tokens.
            without_B: True for rows that are to read the learned state of no text instead.
        """
        self._check_width(states_BLW)
        mask_BL = _readable(mask_BL)
        # States of encoders differ in scale by orders of magnitude; padding may hold anything.
        states_BLW = states_BLW.float().masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        normed_BLW = F.layer_norm(states_BLW, (states_BLW.shape[-1],))
        text_BLE = self.text_in(normed_BLW.to(self.text_in.weight.dtype))
        if without_B is not None:
            null_BLE = self.null_text(torch.zeros_like(mask_BL, dtype=torch.int64))
            text_BLE = torch.where(without_B.view(-1, 1, 1), null_BLE, text_BLE)
        keys_values = [layer.keys_values(text_BLE) for layer in self._layers()]
        return ReadText(keys_values, mask_BL[:, None, None])

    def forward(self, x_BSD: Tensor, t_B: Tensor, mask_BS: Tensor, text: ReadText) -> Tensor:
        """Velocity (B, S, D), float32.

        Args:
            x_BSD: where the flow is.
            t_B: its time, 0 to 1.
            mask_BS: True for real bars; the others may hold anything.
            text: of `read_text`.
        """
        mask_BS = _readable(mask_BS)
        dtype = self.summary_in.weight.dtype
        x_BSD = x_BSD.masked_fill(~mask_BS.unsqueeze(-1), 0.0).to(dtype)
        bar_S = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        x_BSE = self.summary_in(x_BSD) + sinusoids(bar_S, self.config.width).to(dtype)

        waves_BE = sinusoids(_TIMES_COUNTED * t_B.float(), self.config.width).to(dtype)
        time_BE = F.silu(self.time_hidden(F.silu(self.time_in(waves_BE))))
        time_BME = self.time_out(time_BE).unflatten(-1, (_MODULATIONS, -1))
        for layer, keys_values in zip(self._layers(), text.keys_values, strict=True):
            x_BSE = layer(x_BSE, time_BME, mask_BS[:, None, None], keys_values, text.mask)
        shift, scale = self.final_modulation(time_BE).unsqueeze(1).chunk(2, dim=-1)
        return self.summary_out(_modulated(x_BSE, shift, scale)).float()

    def loss(self, batch: BridgeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity over real bars, and that of the summaries it implies.

        Args:
            batch: texts and their summaries; each row draws its noise, its time and whether it
                goes without its text from its own seed. Evaluation keeps all texts.
        """
        mask_BS = batch.mask_BS
        data_BSD = batch.summaries_BSD.float().masked_fill(~mask_BS.unsqueeze(-1), 0.0)
        noise_BSD, t_B, without_B = self._draw(batch.row_seeds, data_BSD)
        states = batch.states
        text = self.read_text(
            states.states_BLW, states.mask_BL, without_B if self.training else None
        )
        velocity_BSD = self(path_at(noise_BSD, data_BSD, t_B), t_B, mask_BS, text)
        assert velocity_BSD.shape == data_BSD.shape, (velocity_BSD.shape, data_BSD.shape)
        error_BS = (velocity_BSD - (data_BSD - noise_BSD)).square().mean(-1)
        # From x_t the straight way on leads to x_t + (1 - t) velocity.
        implied_BS = (1 - t_B).square().unsqueeze(1) * error_BS.detach()
        loss = batch.mean_over_bars(error_BS)
        return loss, {
            "velocity_error": loss.detach(),
            "summary_error": batch.mean_over_bars(implied_BS),
        }

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
        mask_BS: Tensor | None = None,
        first_bar: int = 0,
    ) -> Tensor:
        """Normalised summaries (B, S, D) of texts.

        Args:
            states: of B texts.
            num_bars: S, 1 to `num_queries`.
            seed: one for each row; or one, with which every row begins from the same noise.
            steps: of the solver.
            guidance: 1 is the answer to the text, more exaggerates what the text changes.
            solver: `heun` asks the network twice a step.
            mask_BS: True at the bars that each row wants; all S if not given.
            first_bar: of these bars in their piece, whose noise they get.

        Raises:
            ConfigError: more bars than the bridge has, as many seeds as there are no rows.
        """
        if not 1 <= num_bars <= self.config.num_queries:
            raise ConfigError(
                f"{num_bars} bars asked for: allowed 1 to {self.config.num_queries}, which this "
                "bridge was trained for"
            )
        num_rows = len(states.states_BLW)
        seeds = [seed] * num_rows if isinstance(seed, int) else list(seed)
        if len(seeds) != num_rows:
            raise ConfigError(f"{len(seeds)} seeds for {num_rows} texts: allowed one, or one each")
        device = self.summary_in.weight.device
        states_BLW, mask_BL = states.states_BLW.to(device), states.mask_BL.to(device)
        width, last_bar = self.config.summary_width, first_bar + num_bars
        noise_BSD = noise_of_rows(seeds, last_bar, width, device)[:, first_bar:]
        # Guidance asks for both answers in one call: rows with their text, then without.
        copies = 1 if guidance == 1 else 2
        without_B = torch.arange(copies * num_rows, device=device) >= num_rows
        text = self.read_text(states_BLW.repeat(copies, 1, 1), mask_BL.repeat(copies, 1), without_B)
        if mask_BS is None:
            mask_BS = without_B.new_ones(num_rows, num_bars)
        mask_BS = mask_BS.to(device).repeat(copies, 1)

        def velocity(x_BSD: Tensor, t: float) -> Tensor:
            t_B = torch.full((copies * num_rows,), t, device=device)
            found_BSD = self(x_BSD.repeat(copies, 1, 1), t_B, mask_BS, text)
            if copies == 1:
                return found_BSD
            given_BSD, free_BSD = found_BSD.chunk(2)
            return guided(given_BSD, free_BSD, guidance)

        return solve(velocity, noise_BSD, steps=steps, solver=solver)

    def _draw(self, seeds: Sequence[int], data_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, times and who goes without a text, where the data lie."""
        device, num_bars = data_BSD.device, data_BSD.shape[1]
        noise, times, without = [], [], []
        for seed in seeds:
            generator = torch.Generator(device).manual_seed(seed)
            times.append(draw_times(1, self.config.times, generator))
            without.append(torch.rand(1, generator=generator, device=device))
            # As many as there can be: padding of a batch must not change what a bar draws.
            shape = (self.config.num_queries, data_BSD.shape[-1])
            noise.append(torch.randn(shape, generator=generator, device=device)[:num_bars])
        return torch.stack(noise), torch.cat(times), torch.cat(without) < self.config.condition_drop

    def _layers(self) -> list[BridgeLayer]:
        return [layer for layer in self.layers if isinstance(layer, BridgeLayer)]

    def _check_width(self, states_BLW: Tensor) -> None:
        if states_BLW.shape[-1] != self.config.text_width:
            raise ConfigError(
                f"text states of width {states_BLW.shape[-1]}: expected {self.config.text_width}, "
                "the width of the encoder that the bridge was trained with"
            )


def _modulated(x_BSE: Tensor, shift_BSE: Tensor, scale_BSE: Tensor) -> Tensor:
    return F.layer_norm(x_BSE, (x_BSE.shape[-1],)) * (1 + scale_BSE) + shift_BSE


def _readable(mask_BN: Tensor) -> Tensor:
    """The mask; all of a row that has nothing: attention over nothing is no number.

    Such a row stands in for one that a rank does not have, and counts for nothing.
    """
    return mask_BN | ~mask_BN.any(dim=1, keepdim=True)
