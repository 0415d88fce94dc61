"""One decoding step and the closing of a bar as graphs of tensors, for runtimes without torch.

They compute what generation/cache.py computes, for one row without injected summaries: caches are
inputs, and come back longer by what is new. Tensors of both:

    ids          (1, N)             tokens that are added, all in one bar or in the prefix
    labels       (4, 1, N)          bar, instrument, index, onset of each; see tokens/labels.py
    past_labels  (3, 1, T)          bar, instrument, index of the tokens in the cache
    tokens       (L, 2, 1, G, T, K) keys and values of tokens, layer by layer
    summaries    (L, 2, 1, G, S, K) keys and values that tokens read of finished bars
    own          (L, 2, 1, G, S, K) keys and values that summaries read of summaries
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.model import masks
from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import Label
from meloformer.model.museformer import Layer, MuseFormer


class _Graph(nn.Module):
    """What both graphs share: the model's layers.

    Args:
        model: in evaluation mode, with summaries.

    Raises:
        ConfigError: a model without summaries.
    """

    def __init__(self, model: MuseFormer) -> None:
        super().__init__()
        if not model.config.summaries:
            raise ConfigError(
                "--onnx with a model without summaries: allowed: one with summaries; export the "
                "other without --onnx"
            )
        self.model = model

    def layers(self) -> list[Layer]:
        return [layer for layer in self.model.layers if isinstance(layer, Layer)]


class AddTokens(_Graph):
    """Append N tokens: logits after the last of them, and longer caches."""

    inputs: ClassVar[tuple[str, ...]] = ("ids", "labels", "past_labels", "tokens", "summaries")
    outputs: ClassVar[tuple[str, ...]] = ("logits", "next_labels", "next_tokens")

    def forward(
        self, ids_1N: Tensor, labels: Tensor, past_labels: Tensor, tokens: Tensor, summaries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the module.

        Returns:
            (1, V) logits, (3, 1, T + N) labels, (L, 2, 1, G, T + N, K) keys and values.
        """
        bar_1N, instrument_1N, index_1N, onset_1N = labels.unbind(0)
        next_labels = torch.cat([past_labels, labels[:3]], dim=2)
        mask = self._mask(labels, next_labels, summaries.shape[4])
        x_1ND = self.model.embed(ids_1N, onset_1N, instrument_1N)
        angles = self.model.angles(bar_1N, index_1N)
        grown = []
        for number, layer in enumerate(self.layers()):
            normed_1ND = layer.attention_norm(x_1ND)
            new = torch.stack(layer.keys_values(normed_1ND, angles))
            grown.append(torch.cat([tokens[number], new], dim=3))
            k, v = torch.cat([summaries[number], grown[-1]], dim=3).unbind(0)
            read = _attend(layer.queries(normed_1ND, angles), k, v, mask)
            x_1ND = layer.add_ffn(layer.add_attention(x_1ND, read))
        return self.model.unembed(x_1ND[:, -1:])[:, 0], next_labels, torch.stack(grown)

    def _mask(self, labels: Tensor, keys: Tensor, num_slots: int) -> Tensor:
        """(1, H, N, S + T + N) numbers to add to scores, each head group under its own rule."""
        config = self.model.config
        bar_1N, instrument_1N, index_1N, _ = labels[:, :, :, None].unbind(0)
        num_new = labels.shape[2]
        num_tokens = keys.shape[2]
        time_T = torch.arange(num_tokens, device=labels.device)
        time_N = time_T[num_tokens - num_new :]
        zero = torch.zeros((), dtype=torch.int64, device=labels.device)
        none = torch.zeros((), dtype=torch.bool, device=labels.device)
        queries = Label(zero, bar_1N, instrument_1N, index_1N, time_N[None, :, None], none)
        bar_1T, instrument_1T, index_1T = keys[:, :, None, :].unbind(0)
        of_tokens = Label(zero, bar_1T, instrument_1T, index_1T, time_T[None, None], none)
        slot_S = torch.arange(num_slots, device=labels.device)[None, None]
        of_summaries = Label(zero, slot_S, zero - 1, zero - 1, slot_S, ~none)
        rule = masks.rule_of(config.rule)
        groups = []
        for group, heads in zip(rule, masks.split_heads(rule, config.num_kv_heads), strict=True):
            reads = torch.cat(
                [
                    masks.token_reads(group, queries, of).expand(1, num_new, size)
                    for of, size in ((of_summaries, num_slots), (of_tokens, num_tokens))
                ],
                dim=2,
            )
            count = (heads.stop - heads.start) * config.num_heads // config.num_kv_heads
            groups.append(reads[:, None].expand(-1, count, -1, -1))
        return _bias(torch.cat(groups, dim=1), self.model.final_norm.weight.dtype)


class CloseBar(_Graph):
    """Compute the summary of the newest bar, whose tokens are all in the cache."""

    inputs: ClassVar[tuple[str, ...]] = ("past_labels", "tokens", "summaries", "own")
    outputs: ClassVar[tuple[str, ...]] = ("next_summaries", "next_own")

    def forward(
        self, past_labels: Tensor, tokens: Tensor, summaries: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the module.

        Returns:
            `summaries` and `own` with one bar more.
        """
        num_slots = own.shape[4]
        bar_11 = past_labels[0, :, -1:]
        bar_1T = past_labels[0]
        num_tokens = bar_1T.shape[1]
        zero, none = torch.zeros_like(bar_11), torch.zeros_like(bar_11, dtype=torch.bool)
        queries = Label(zero, bar_11, zero - 1, zero - 1, bar_11, ~none)
        slot_1S = torch.arange(num_slots + 1, device=bar_11.device)[None]
        of_summaries = Label(zero, slot_1S, zero - 1, zero - 1, slot_1S, ~none)
        time_1T = torch.arange(num_tokens, device=bar_11.device)[None]
        of_tokens = Label(zero, bar_1T, zero, zero, time_1T, none)
        reads = [masks.summary_reads(queries, of) for of in (of_summaries, of_tokens)]
        s_11D = self.model.summary_start.expand(1, 1, -1)
        mask = _bias(torch.cat(reads, dim=1)[:, None, None], s_11D.dtype)
        angles = self.model.angles(bar_11, zero)
        grown, grown_own = [], []
        for number, layer in enumerate(self.layers()):
            normed_11D = layer.attention_norm(s_11D)
            new = torch.stack(layer.keys_values(normed_11D, angles))
            grown_own.append(torch.cat([own[number], new], dim=3))
            k, v = torch.cat([grown_own[-1], tokens[number]], dim=3).unbind(0)
            read = _attend(layer.queries(normed_11D, angles), k, v, mask)
            s_11D = layer.add_attention(s_11D, read)
            coarse = torch.stack(layer.coarse_keys_values(s_11D, angles))
            grown.append(torch.cat([summaries[number], coarse], dim=3))
            if not layer.is_last:
                s_11D = layer.add_ffn(s_11D)
        return torch.stack(grown), torch.stack(grown_own)


def empty_caches(
    config: MuseFormerConfig, num_tokens: int = 0, num_bars: int = 0
) -> dict[str, Tensor]:
    """Caches before the first token, or of zeros for so many tokens and finished bars."""

    def cache(size: int) -> Tensor:
        return torch.zeros((config.num_layers, 2, 1, config.num_kv_heads, size, config.head_width))

    return {
        "past_labels": torch.zeros((3, 1, num_tokens), dtype=torch.int64),
        "tokens": cache(num_tokens),
        "summaries": cache(num_bars),
        "own": cache(num_bars),
    }


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    queries_per_kv = q.shape[1] // k.shape[1]
    if queries_per_kv > 1:
        # As a runtime knows it: `enable_gqa` has no operator in the common opsets.
        k, v = (x.repeat_interleave(queries_per_kv, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _bias(reads: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(reads.shape, dtype=dtype, device=reads.device).masked_fill(
        ~reads, -torch.inf
    )
