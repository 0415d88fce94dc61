"""One token a row as a function of tensors whose shapes stay: what a graph can repeat.

The cache adds a token by reading as much as is there, and a program that is told how much changes
from token to token. Here it reads all the room that the buffers have, under a mask that says what
is there; where to write is a tensor. So one compiled program serves until the room grows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.generation.decode_layer import DecodeLayer, turn_of
from meloformer.model import masks
from meloformer.model.masks import Label
from meloformer.model.museformer import MuseFormer


class Buffers(NamedTuple):
    """What a step reads and writes, in the same memory from token to token.

    Args:
        reads: of each layer (2, B, G, I + S + T, K), see `LayerCache`.
        keys_4BN: int32 piece, bar, instrument and index of S summaries and of room for T tokens;
            -1 where there is nothing.
        open_BI: int32, 0 for each open summary, -1 where there is none.
        num_slots: S.
    """

    reads: tuple[Tensor, ...]
    keys_4BN: Tensor
    open_BI: Tensor
    num_slots: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, open summaries, summaries and tokens that there is room for."""
        _, num_rows, num_keys = self.keys_4BN.shape
        num_open = self.open_BI.shape[1]
        return num_rows, num_open, self.num_slots, num_keys - self.num_slots


class DecodeStep:
    """The step of a model.

    Args:
        model: in evaluation mode.
        layers: of the model.
    """

    def __init__(self, model: MuseFormer, layers: Sequence[DecodeLayer]) -> None:
        self._model, self._layers = model, layers
        rule = masks.rule_of(model.config.rule)
        # Shared out here: what numpy computes inside a program is data to its compiler.
        shares = masks.split_heads(rule, model.config.num_kv_heads)
        self._groups = [
            (group, heads.stop - heads.start) for group, heads in zip(rule, shares, strict=True)
        ]

    def __call__(self, buffers: Buffers, told_7B: Tensor, first_opened: int) -> Tensor:
        """Write one token a row into the buffers, and read on.

        Args:
            buffers: changed in place.
            told_7B: int64 id, piece (-1 for rows that have ended), bar, instrument, index, onset
                and place among the tokens, which is the same for all rows.
            first_opened: the first layer, from 0, that reads open summaries.

        Returns:
            (B, V) logits.
        """
        num_open, place_1 = buffers.open_BI.shape[1], told_7B[6, :1]
        keys_4BN = buffers.keys_4BN
        keys_4BN.index_copy_(2, buffers.num_slots + place_1, told_7B[1:5, :, None].int())
        piece_B1, bar_B1, instrument_B1, index_B1 = told_7B[1:5, :, None]
        query = Label(piece_B1, bar_B1, instrument_B1, index_B1, place_1, False)
        closed_BG1N = self._mask(query, keys_4BN, buffers.num_slots)
        opened_BG1N = closed_BG1N
        if num_open:
            of_open = _reads_open(query, buffers.open_BI)[:, None, None]
            of_open = of_open.expand(-1, closed_BG1N.shape[1], -1, -1)
            opened_BG1N = torch.cat([of_open, closed_BG1N], dim=3)

        x_B1D = self._model.embed(told_7B[0, :, None], told_7B[5, :, None], instrument_B1)
        biases = [_bias(mask, x_B1D.dtype) for mask in (closed_BG1N, opened_BG1N)]
        turn = turn_of(self._model.angles(bar_B1, index_B1), x_B1D.dtype)
        at_1 = num_open + buffers.num_slots + place_1
        for index, (layer, read) in enumerate(zip(self._layers, buffers.reads, strict=True)):
            has_open = index >= first_opened
            q_BH1K, *own = layer.read(x_B1D, turn)
            for stored, new_BG1K in zip(read.unbind(), own, strict=True):
                stored.index_copy_(2, at_1, new_BG1K)
            k, v = read[:, :, :, 0 if has_open else num_open :].unbind()
            heads_BH1K = _attend(q_BH1K, k, v, biases[has_open])
            x_B1D = layer.add_ffn(layer.add_attention(x_B1D, heads_BH1K))
        return self._model.unembed(x_B1D)[:, 0]

    def _mask(self, query: Label, keys_4BN: Tensor, num_slots: int) -> Tensor:
        """(B, G, 1, S + T) bool, each head group under its own rule.

        A place that nothing has been written to is later than the token, so nobody reads it.
        """
        place_N = torch.arange(keys_4BN.shape[2], device=keys_4BN.device)
        is_summary_N = place_N < num_slots
        time_N = torch.where(is_summary_N, place_N, place_N - num_slots)
        piece_BN, bar_BN, instrument_BN, index_BN = keys_4BN
        keys = Label(piece_BN, bar_BN, instrument_BN, index_BN, time_N, is_summary_N)
        of_groups = [
            masks.token_reads(group, query, keys)[:, None, None].expand(-1, num_heads, -1, -1)
            for group, num_heads in self._groups
        ]
        return torch.cat(of_groups, dim=1)


def _reads_open(query: Label, open_BI: Tensor) -> Tensor:
    bar_I = torch.arange(open_BI.shape[1], device=open_BI.device)
    return masks.token_reads_open(query, Label(open_BI, bar_I, -1, -1, bar_I, open_BI >= 0))


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def _attend(q_BH1K: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, bias_BG1N: Tensor) -> Tensor:
    """(B, H, 1, K). Heads of a group are queries beside each other: they read the same keys."""
    num_groups, length = k_BGNK.shape[1:3]
    q_BGRK = q_BH1K.unflatten(1, (num_groups, -1))[:, :, :, 0]
    bias_BGRN = bias_BG1N.expand(-1, -1, q_BGRK.shape[2], length)
    heads_BGRK = F.scaled_dot_product_attention(q_BGRK, k_BGNK, v_BGNK, attn_mask=bias_BGRN)
    return heads_BGRK.flatten(1, 2)[:, :, None]
