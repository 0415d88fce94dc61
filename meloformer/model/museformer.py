"""MuseFormer: tokens and one summary per bar, sharing projections and feed-forward weights.

Source: Yu et al. 2022, "Museformer: Transformer with Fine- and Coarse-Grained Attention for Music
Generation", sections 3.1-3.3. Differences: summaries read earlier summaries, tokens read the
prefix and their own bar token, rules are data, positions are rotary, weights are shared between
the streams except the keys and values that tokens read from summaries.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meloformer.errors import ConfigError
from meloformer.model import attention, fused
from meloformer.model.attention import AttentionPlan
from meloformer.model.config import Checkpointing, MuseFormerConfig
from meloformer.model.injection import INJECTION_LAYER, Start
from meloformer.model.masks import Layout
from meloformer.model.rotary import rotary_angles, rotate


class Layer(nn.Module):
    """SUMMARIZE, then UPDATE, then the feed-forward network on both streams."""

    def __init__(
        self,
        config: MuseFormerConfig,
        *,
        is_last: bool,
        checkpointing: Checkpointing = "none",
        fuse: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing, self.fuse = checkpointing, fuse
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_width = config.head_width
        self.is_last = is_last
        kv_width = config.num_kv_heads * config.head_width

        self.attention_norm = nn.RMSNorm(config.width)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * kv_width, bias=False)
        self.query_norm = nn.RMSNorm(config.head_width)
        self.key_norm = nn.RMSNorm(config.head_width)
        self.attention_out = nn.Linear(config.width, config.width, bias=False)

        if config.summaries:
            # K2, V2: what tokens read of the summaries of finished bars.
            self.coarse_norm = nn.RMSNorm(config.width)
            self.coarse_key_value = nn.Linear(config.width, 2 * kv_width, bias=False)
            self.coarse_key_norm = nn.RMSNorm(config.head_width)

        self.ffn_norm = nn.RMSNorm(config.width)
        self.ffn_in = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.ffn_out = nn.Linear(config.ffn_width, config.width, bias=False)

    def queries(self, normed_BND: Tensor, angles: Tensor) -> Tensor:
        """(B, H, N, K) queries of normed states."""
        q_BNHK = self.query(normed_BND).unflatten(-1, (self.num_heads, -1))
        return self._turned(self.query_norm, q_BNHK, angles)

    def keys_values(self, normed_BND: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, N, K) keys and values of normed states."""
        k_BNGK, v_BGNK = self._split(self.key_value(normed_BND))
        return self._turned(self.key_norm, k_BNGK, angles), v_BGNK

    def coarse_keys_values(self, s_BSD: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, S, K) keys and values that tokens read, of summaries after SUMMARIZE."""
        k_BSGK, v_BGSK = self._split(self.coarse_key_value(self.coarse_norm(s_BSD)))
        return self._turned(self.coarse_key_norm, k_BSGK, angles), v_BGSK

    def add_attention(self, x_BND: Tensor, heads_BHNK: Tensor) -> Tensor:
        """Residual of an attention call."""
        return x_BND + self.attention_out(heads_BHNK.transpose(1, 2).flatten(2))

    def add_ffn(self, x_BND: Tensor) -> Tensor:
        """Residual of the feed-forward network (SwiGLU, Shazeer 2020)."""
        both_BNF = self.ffn_in(self.ffn_norm(x_BND))
        swiglu = fused.swiglu if self._is_fused else fused.plain_swiglu
        return x_BND + self.ffn_out(swiglu(both_BNF))

    def forward(
        self,
        x_BTD: Tensor,
        s_BSD: Tensor | None,
        token_angles: Tensor,
        summary_angles: Tensor,
        plan: AttentionPlan,
        o_BSD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One layer of all streams.

        Args:
            x_BTD: token stream.
            s_BSD: summary stream; None in a model without summaries.
            token_angles: (B, 1, T, K/2).
            summary_angles: (B, 1, S, K/2).
            plan: who reads whom.
            o_BSD: open summaries; None below the injection layer, or where there are none.

        Returns:
            The three streams after this layer.
        """
        normed_BTD = self.attention_norm(x_BTD)
        q_BHTK = self.queries(normed_BTD, token_angles)
        k_BGTK, v_BGTK = self.keys_values(normed_BTD, token_angles)
        if s_BSD is None:
            read_BHTK = attention.update(q_BHTK, k_BGTK, v_BGTK, plan)
            return self._ffn(self.add_attention(x_BTD, read_BHTK)), None, None

        s_BSD = self._summarize(s_BSD, (k_BGTK, v_BGTK), summary_angles, plan)
        coarse = self.coarse_keys_values(s_BSD, summary_angles)
        if o_BSD is not None:
            assert plan.opened is not None, "open summaries without a plan for them"
            plan = plan.opened
            o_BSD = self.open_summarize(o_BSD, summary_angles, plan)
            opened = self.coarse_keys_values(o_BSD, summary_angles)
            coarse = (torch.cat([coarse[0], opened[0]], 2), torch.cat([coarse[1], opened[1]], 2))
        read_BHTK = attention.update(q_BHTK, k_BGTK, v_BGTK, plan, coarse)
        x_BTD = self._ffn(self.add_attention(x_BTD, read_BHTK))
        # Nobody reads the summaries after the last layer's UPDATE.
        if self.is_last:
            return x_BTD, s_BSD, o_BSD
        return x_BTD, self._ffn(s_BSD), o_BSD if o_BSD is None else self._ffn(o_BSD)

    def summaries(
        self,
        x_BTD: Tensor,
        s_BSD: Tensor,
        token_angles: Tensor,
        summary_angles: Tensor,
        plan: AttentionPlan,
    ) -> Tensor:
        """The summary stream after this layer, without the tokens'; see `forward`."""
        read = self.keys_values(self.attention_norm(x_BTD), token_angles)
        s_BSD = self._summarize(s_BSD, read, summary_angles, plan)
        return s_BSD if self.is_last else self._ffn(s_BSD)

    def _summarize(
        self, s_BSD: Tensor, tokens: tuple[Tensor, Tensor], angles: Tensor, plan: AttentionPlan
    ) -> Tensor:
        """SUMMARIZE, with keys and values of the tokens."""
        normed_BSD = self.attention_norm(s_BSD)
        own = self.keys_values(normed_BSD, angles)
        queries_BHSK = self.queries(normed_BSD, angles)
        return self.add_attention(s_BSD, attention.summarize(queries_BHSK, *tokens, plan, own))

    def open_summarize(self, o_BSD: Tensor, angles: Tensor, opened: AttentionPlan) -> Tensor:
        """SUMMARIZE of open summaries, which read each other; see `AttentionPlan.opened`."""
        normed_BSD = self.attention_norm(o_BSD)
        read_BHSK = attention.summarize(
            self.queries(normed_BSD, angles), *self.keys_values(normed_BSD, angles), opened
        )
        return self.add_attention(o_BSD, read_BHSK)

    @property
    def _is_fused(self) -> bool:
        # Scoring and generation would want graphs of their own, the latter for single tokens.
        return self.fuse and torch.is_grad_enabled()

    def _turned(self, norm: nn.RMSNorm, x_BNHK: Tensor, angles: Tensor) -> Tensor:
        """(B, H, N, K), with the heads of a token together in memory as they were projected.

        The kernel writes its result as its queries lie: so heads side by side are no copy of it.
        """
        if self._is_fused:
            return fused.norm_rotate(x_BNHK, norm.weight, norm.eps, angles).transpose(1, 2)
        return rotate(norm(x_BNHK), angles.transpose(1, 2)).transpose(1, 2)

    def _ffn(self, x_BND: Tensor) -> Tensor:
        if self.checkpointing == "ffn" and torch.is_grad_enabled():
            return _computed_again(self.add_ffn, x_BND)
        return self.add_ffn(x_BND)

    def _split(self, kv_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, N, G, K) and values (B, G, N, K)."""
        k, v = kv_BNE.unflatten(-1, (2, self.num_kv_heads, self.head_width)).unbind(2)
        return k, v.transpose(1, 2)


class MuseFormer(nn.Module):
    """The language model: ids and their layout in, logits of the next token out.

    Args:
        config: what the weights compute.
        checkpointing: what a backward pass computes again instead of keeping it. Results are the
            same; without gradients nothing is computed twice.
        fuse: compile the pointwise parts of the layers for training; see model/fused.py.
    """

    def __init__(
        self,
        config: MuseFormerConfig,
        *,
        checkpointing: Checkpointing = "none",
        fuse: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        # What fine-tuning freezes: any parameter at all, and the layers below all that is trained.
        self.is_partly_frozen, self.num_frozen_layers = False, 0
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.onset_embedding = nn.Embedding(config.num_onsets, config.width)
        # Prefix and padding (-1) first, header tokens (0) next, then the instruments.
        self.instrument_embedding = nn.Embedding(config.num_instruments + 2, config.width)
        if config.summaries:
            self.summary_start = nn.Parameter(torch.empty(config.width))
        self.layers = nn.ModuleList(
            Layer(
                config,
                is_last=index == config.num_layers - 1,
                checkpointing=checkpointing,
                fuse=fuse,
            )
            for index in range(config.num_layers)
        )
        self.final_norm = nn.RMSNorm(config.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights; what ends in a residual is scaled by depth (Radford et al. 2019)."""
        std = 0.02
        residual_std = std / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            elif name.endswith(("attention_out.weight", "ffn_out.weight")):
                nn.init.normal_(parameter, std=residual_std)
            else:
                nn.init.normal_(parameter, std=std)

    def embed(self, ids_BT: Tensor, onset_BT: Tensor, instrument_BT: Tensor) -> Tensor:
        """(B, T, D) token stream before the first layer."""
        return (
            self.token_embedding(ids_BT)
            + self.onset_embedding(onset_BT.long())
            + self.instrument_embedding(instrument_BT.long() + 1)
        )

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """(B, T, V) logits, with the embedding as head."""
        return F.linear(self.final_norm(x_BTD), self.token_embedding.weight)

    def angles(self, bar: Tensor, index: Tensor) -> Tensor:
        """Rotary angles of tokens, or of summaries with index 0."""
        return rotary_angles(bar, index, self.config.head_width, self.config.rotary_base)

    def forward(
        self, ids_BT: Tensor, layout: Layout, plan: AttentionPlan, start: Start | None = None
    ) -> Tensor:
        """Logits of the next token, (B, T, V).

        Args:
            ids_BT: token ids, int64.
            layout: where each token and summary stands, torch int32; with open summaries where
                something is injected (`Injection.layout`).
            plan: `attention.build_plan(layout, rule, ...)`; without summaries, of
                `layout.without_summaries()`.
            start: what is injected, and after which layer, for a layout with open summaries.
        """
        return self.unembed(self._streams(ids_BT, layout, plan, start)[0])

    def summaries(
        self, ids_BT: Tensor, layout: Layout, plan: AttentionPlan, layer: int = INJECTION_LAYER
    ) -> Tensor:
        """(B, S, D) summary stream after a layer: what a bridge learns to foretell.

        Args:
            ids_BT: token ids, int64.
            layout: where each token and summary stands, torch int32.
            plan: `attention.build_plan(layout, rule, ...)`.
            layer: counted from 1; above the injection layer, without injection.

        Raises:
            ConfigError: no such layer, or a model without summaries.
        """
        if not self.config.summaries or not 1 <= layer < self.config.num_layers:
            raise ConfigError(
                f"summaries after layer {layer} of {self.config.num_layers}: allowed are 1 to "
                f"{self.config.num_layers - 1}, of a model with summaries"
            )
        # What the last of these layers does to the tokens, nobody reads.
        x_BTD, s_BSD = self._streams(ids_BT, layout, plan, None, layer - 1)
        last = self.layers[layer - 1]
        assert s_BSD is not None and isinstance(last, Layer)
        angles = self._angles(layout)
        return last.summaries(x_BTD, s_BSD, *angles, plan.for_dtype(x_BTD.dtype))

    def _angles(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Of tokens (B, 1, T, K/2) and of summaries (B, 1, S, K/2)."""
        return (
            self.angles(layout.bar_BT, layout.index_BT),
            self.angles(layout.bar_BS, torch.zeros_like(layout.bar_BS)),
        )

    def _streams(
        self,
        ids_BT: Tensor,
        layout: Layout,
        plan: AttentionPlan,
        start: Start | None,
        num_layers: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens and summaries after the last layer, or after the first few."""
        assert start is None or layout.open_BS is not None, "take `Injection.layout`"
        x_BTD = self.embed(ids_BT, layout.onset_BT, layout.instrument_BT)
        plan = plan.for_dtype(x_BTD.dtype)
        s_BSD = o_BSD = None
        if self.config.summaries:
            s_BSD = self.summary_start.expand(*layout.piece_BS.shape, -1)
        token_angles, summary_angles = self._angles(layout)
        again = self.checkpointing == "layer" and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers[:num_layers]):
            if start is not None and index == start.layer:
                assert s_BSD is not None
                s_BSD, o_BSD = start.streams(s_BSD, layout.open_BS)
            if index < self.num_frozen_layers:
                with torch.no_grad():
                    x_BTD, s_BSD, o_BSD = layer(
                        x_BTD, s_BSD, token_angles, summary_angles, plan, o_BSD
                    )
                continue
            if index == self.num_frozen_layers and self.is_partly_frozen:
                x_BTD = _as_trained(x_BTD)
                s_BSD, o_BSD = (x if x is None else _as_trained(x) for x in (s_BSD, o_BSD))
            inputs = (x_BTD, s_BSD, token_angles, summary_angles, plan, o_BSD)
            x_BTD, s_BSD, o_BSD = _computed_again(layer, *inputs) if again else layer(*inputs)
        return x_BTD, s_BSD


def _as_trained(x_BND: Tensor) -> Tensor:
    """A stream with a gradient, as if all before it were trained.

    Else every mixture of frozen and trained inputs would want compiled graphs of its own.
    """
    if torch.is_grad_enabled() and not x_BND.requires_grad:
        return x_BND.detach().requires_grad_()
    return x_BND


def _computed_again(function: Callable[..., Any], *inputs: Any) -> Any:
    """Keep the inputs alone for the backward pass, which calls the function again.

    Whole functions, never a policy on single operations: under such a policy torch runs
    FlexAttention uncompiled, which is dense attention.
    """
    # Nothing in the model is drawn at random, so no generator has to be put back.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
