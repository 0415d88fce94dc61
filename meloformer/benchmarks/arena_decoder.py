"""The baseline of the arena: a plain dense causal transformer over tokens of one or more fields.

RMSNorm, SwiGLU, rotary positions by token index, normed queries and keys, tied embeddings, as
MuseFormer has them, and nothing else: no bars, no summaries, no rule. A token of several fields
enters as the sum of its embeddings and leaves through one head for each; a chained model lets each
head read the fields before it too.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.errors import ConfigError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.rotary import rotate

_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that decides the function which the weights compute.

    Args:
        vocab_sizes: ids of each field.
        chained: heads read the fields of the same token before them; False keeps them independent
            given what came before the token.
    """

    num_layers: int
    width: int
    num_heads: int
    ffn_width: int
    vocab_sizes: tuple[int, ...]
    chained: bool = False
    rotary_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; equals the sum over the module's tensors exactly.

        Per layer: queries, keys, values and output (4 D x D), SwiGLU (3 D F), two norms of width D
        and two of width K.
        """
        D, K = self.width, self.head_width
        layer = 4 * D * D + 3 * D * self.ffn_width + 2 * D + 2 * K
        return sum(self.vocab_sizes) * D + self.num_layers * layer + D + self.chained * (D * D + D)


def as_large_as(
    model: MuseFormerConfig, num_parameters: int, vocab_sizes: tuple[int, ...], chained: bool
) -> DecoderConfig:
    """A decoder as deep and wide as a MuseFormer; its feed-forward width takes the difference.

    Args:
        model: whose depth, width and heads it takes.
        num_parameters: to come close to.
        vocab_sizes: ids of each field.
        chained: see `DecoderConfig`.

    Raises:
        ConfigError: the vocabulary alone is larger than that.
    """
    config = DecoderConfig(
        num_layers=model.num_layers,
        width=model.width,
        num_heads=model.num_heads,
        ffn_width=0,
        vocab_sizes=vocab_sizes,
        chained=chained,
        rotary_base=model.rotary_base,
    )
    left = num_parameters - config.num_parameters
    ffn_width = round(left / (3 * config.width * config.num_layers))
    if ffn_width < 1:
        raise ConfigError(
            f"{sum(vocab_sizes)} ids of width {config.width} leave {left} of {num_parameters} "
            "parameters for feed-forward layers; allowed: a larger --model_size"
        )
    return replace(config, ffn_width=ffn_width)


class DecoderLayer(nn.Module):
    """Causal attention, then the feed-forward network."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, K = config.width, config.head_width
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(D)
        self.query_key_value = nn.Linear(D, 3 * D, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(K), nn.RMSNorm(K)
        self.attention_out = nn.Linear(D, D, bias=False)
        self.ffn_norm = nn.RMSNorm(D)
        self.ffn_in = nn.Linear(D, 2 * config.ffn_width, bias=False)
        self.ffn_out = nn.Linear(config.ffn_width, D, bias=False)

    def forward(self, x_BTD: Tensor, angles: Tensor, cache: "LayerCache | None") -> Tensor:
        """The stream after this layer.

        Args:
            x_BTD: all tokens, or with a cache the new one alone.
            angles: (1, 1, T, K / 2) rotary angles of these tokens.
            cache: keys and values of the tokens before, which this call adds to.
        """
        qkv = self.query_key_value(self.attention_norm(x_BTD)).unflatten(
            -1, (3, self.num_heads, -1)
        )
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        q_BHTK = rotate(self.query_norm(q_BHTK), angles)
        k_BHTK = rotate(self.key_norm(k_BHTK), angles)
        if cache is not None:
            k_BHTK, v_BHTK = cache.add(k_BHTK, v_BHTK)
        read_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=cache is None)
        x_BTD = x_BTD + self.attention_out(read_BHTK.transpose(1, 2).flatten(2))
        gate_BTF, up_BTF = self.ffn_in(self.ffn_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.ffn_out(F.silu(gate_BTF) * up_BTF)


class LayerCache:
    """Keys and values of one layer, as they come.

    Args:
        num_tokens: most that will come.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens, self.length = num_tokens, 0
        self._kept: Tensor | None = None

    def add(self, k_BH1K: Tensor, v_BH1K: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one more token; keys and values (B, H, T, K) of all so far."""
        if self._kept is None:
            B, H, _, K = k_BH1K.shape
            self._kept = k_BH1K.new_empty(2, B, H, self._num_tokens, K)
        self._kept[0, :, :, self.length] = k_BH1K[:, :, 0]
        self._kept[1, :, :, self.length] = v_BH1K[:, :, 0]
        self.length += 1
        k_BHTK, v_BHTK = self._kept[:, :, :, : self.length]
        return k_BHTK, v_BHTK

    def keep(self, rows_R: Tensor) -> None:
        """Go on with some of the rows."""
        if self._kept is not None:
            self._kept = self._kept[:, rows_R]


class Decoder(nn.Module):
    """The language model; ids (B, T, F) of F fields a token.

    Args:
        config: what the weights compute.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(nn.Embedding(V, config.width) for V in config.vocab_sizes)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.width)
        if config.chained:
            self.chain_norm = nn.RMSNorm(config.width)
            self.chain = nn.Linear(config.width, config.width, bias=False)
        residual_std = _STD / (2 * config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            else:
                is_residual = name.endswith(("attention_out.weight", "ffn_out.weight"))
                nn.init.normal_(parameter, std=residual_std if is_residual else _STD)

    def states(self, ids_BTF: Tensor, caches: list[LayerCache] | None = None) -> Tensor:
        """(B, T, D) normed states, from which the next token is told.

        Args:
            ids_BTF: tokens from the first one on; with caches the newest one alone.
            caches: one a layer, from `new_caches`.
        """
        start = 0 if caches is None else caches[0].length
        x_BTD = torch.stack(
            [embed(ids) for embed, ids in zip(self.embeddings, ids_BTF.unbind(-1), strict=True)]
        ).sum(0)
        angles = self._angles(start, ids_BTF.shape[1], ids_BTF.device)
        for number, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, angles, None if caches is None else caches[number])
        return self.final_norm(x_BTD)

    def new_caches(self, num_tokens: int) -> list[LayerCache]:
        """Empty caches for sequences of at most so many tokens."""
        return [LayerCache(num_tokens) for _ in self.layers]

    def field_logits(self, states_ND: Tensor, field: int, before_ND: Tensor | None) -> Tensor:
        """(..., V) logits of one field of the next token.

        Args:
            states_ND: (..., D) from `states`.
            field: which.
            before_ND: (..., D) embeddings of that token's fields before this one, added up; None
                for the first field, and where heads are independent.
        """
        if before_ND is not None and self.config.chained:
            states_ND = self.chain_norm(states_ND + self.chain(before_ND))
        head = self.embeddings[field]
        assert isinstance(head, nn.Embedding)
        return F.linear(states_ND, head.weight)

    def nats(self, ids_BTF: Tensor, targets_BTF: Tensor) -> Tensor:
        """Negative log likelihood of every target, (B, T) float32, its fields added up.

        Args:
            ids_BTF: tokens.
            targets_BTF: what follows each; IGNORE_INDEX where a field says nothing.
        """
        states_BTD = self.states(ids_BTF)
        # Only where there is a target at all: padding needs no heads.
        is_target_BT = targets_BTF[..., 0] != IGNORE_INDEX
        states_ND, targets_NF = states_BTD[is_target_BT], targets_BTF[is_target_BT]
        nats_N, before_ND = states_ND.new_zeros(len(states_ND), dtype=torch.float32), None
        for field, targets_N in enumerate(targets_NF.unbind(-1)):
            logits_NV = self.field_logits(states_ND, field, before_ND)
            nats_N = nats_N + F.cross_entropy(
                logits_NV.float(), targets_N, ignore_index=IGNORE_INDEX, reduction="none"
            )
            before_ND = self.with_field(before_ND, field, targets_N.clamp(min=0))
        nats_BT = nats_N.new_zeros(is_target_BT.shape)
        nats_BT[is_target_BT] = nats_N
        return nats_BT

    def with_field(self, before_ND: Tensor | None, field: int, ids_N: Tensor) -> Tensor | None:
        """What the next head of the same token reads; None where heads are independent."""
        if not self.config.chained:
            return None
        embedded_ND = self.embeddings[field](ids_N)
        return embedded_ND if before_ND is None else before_ND + embedded_ND

    def _angles(self, start: int, num_tokens: int, device: torch.device) -> Tensor:
        half = self.config.head_width // 2
        exponents = torch.arange(half, device=device, dtype=torch.float32) / half
        index_T1 = torch.arange(start, start + num_tokens, device=device)[:, None]
        return (index_T1 * self.config.rotary_base**-exponents)[None, None]
