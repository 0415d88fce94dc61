"""Decode one token at a time: cached keys and values of tokens, summaries of finished bars.

Adding tokens and closing bars through the cache computes what the parallel forward pass computes;
storage orders do not matter here, since attention does not depend on the order of its keys.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.generation.cache_store import CacheStore
from meloformer.generation.decode_layer import DecodeLayer, decode_layers, turn_of
from meloformer.model import masks
from meloformer.model.attention import AttentionPlan, CallPlan
from meloformer.model.injection import Injection
from meloformer.model.masks import Label
from meloformer.model.museformer import Layer, MuseFormer
from meloformer.tokens.labels import token_labels
from meloformer.tokens.windows import bar_starts


class DecodeCache:
    """State of B sequences that grow together, one token a row and step.

    Args:
        model: in evaluation mode.
        num_rows: B.
        injection: summaries of B rows, slot i for bar i; bars behind the last have none.
        layers: of the model, where another cache has them already.
    """

    def __init__(
        self,
        model: MuseFormer,
        num_rows: int,
        injection: Injection | None = None,
        layers: Sequence[DecodeLayer] = (),
    ) -> None:
        self.model = model
        with torch.no_grad():
            self._layers = layers or decode_layers(model)
        config = model.config
        weight = model.token_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.store = CacheStore(config, num_rows, weight)
        self._groups = list(
            zip(
                masks.rule_of(config.rule),
                masks.split_heads(masks.rule_of(config.rule), config.num_kv_heads),
                strict=True,
            )
        )
        self.injection = injection
        self._num_closed_layers = config.num_layers if injection is None else injection.layer
        self._open_BI = torch.zeros((num_rows, 0), dtype=torch.bool, device=self.device)
        if injection is not None:
            injection.check_width(config.width)
            assert len(injection.summaries_BSD) == num_rows, "one row of summaries a sequence"
            self._open(injection)

    @torch.no_grad()
    def add(self, ids_BN: Tensor, labels: "StepLabels", active_B: Tensor) -> Tensor:
        """Append N tokens to every row; those of one call lie in one bar or in the prefix.

        Args:
            ids_BN: token ids.
            labels: where they stand, each (B, N).
            active_B: bool; rows that have ended are fed padding.

        Returns:
            (B, V) logits after the last token.
        """
        num_new = ids_BN.shape[1]
        piece_BN = torch.where(active_B, 0, -1)[:, None].expand(-1, num_new)
        new_labels = torch.stack([piece_BN, labels.bar, labels.instrument, labels.index])
        store = self.store
        places = store.append(new_labels)

        time_N = torch.arange(store.num_tokens - num_new, store.num_tokens, device=self.device)
        piece, bar, instrument, index = new_labels[:, :, :, None]
        is_summary = torch.zeros((), dtype=torch.bool, device=self.device)
        queries = Label(piece, bar, instrument, index, time_N[None, :, None], is_summary)
        keys = Label(*(field[:, None, :] for field in store.key_labels()))
        closed_BHNN = self._token_mask(queries, keys)
        bias_BHNN = opened_BHNN = self._bias(closed_BHNN)
        if store.num_open:
            opened_BHNN = self._bias(self._with_open(closed_BHNN, queries))

        x_BND = self.model.embed(ids_BN, labels.onset, labels.instrument)
        turn = turn_of(self.model.angles(labels.bar, labels.index), self.dtype)
        for index, (layer, cache) in enumerate(zip(self._layers, store.layers, strict=True)):
            q, own_k, own_v = layer.read(x_BND, turn)
            has_open = index >= self._num_closed_layers
            k, v = cache.read[:, :, :, 0 if has_open else store.num_open : places.stop].unbind()
            k[:, :, -num_new:], v[:, :, -num_new:] = own_k, own_v
            read = _attend(q, k, v, opened_BHNN if has_open else bias_BHNN)
            x_BND = layer.add_ffn(layer.add_attention(x_BND, read))
        return self.model.unembed(x_BND[:, -1:])[:, 0]

    def read(self, ids_T: np.ndarray) -> Tensor:
        """Append the beginning of a sequence to the only row, bar by bar; the last is not closed.

        Args:
            ids_T: a prefix and bars, the last of which may be unfinished; what the cache reads
                first.

        Returns:
            (1, V) logits after the last token.
        """
        assert not self.store.num_tokens, "a row reads the beginning of a sequence once"
        labels = token_labels(ids_T)
        fields = (labels.bar, labels.instrument, labels.index, labels.onset)
        labels_41T = np.stack(fields)[:, None].astype(np.int64)
        # The first bar together with the prefix: there is no summary between them.
        edges = [0, *bar_starts(ids_T)[1:-1].tolist(), len(ids_T)]
        active_1 = torch.ones(1, dtype=torch.bool, device=self.device)
        row_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            if number:
                self.close_bar(row_1, row_1 + (number - 1))
            ids_1N = torch.from_numpy(ids_T[start:stop].astype(np.int64)).to(self.device)[None]
            part = StepLabels.from_numpy(labels_41T[:, :, start:stop], self.device)
            logits_1V = self.add(ids_1N, part, active_1)
        return logits_1V

    def restart(self, row: int, ids_T: np.ndarray, num_skipped: int) -> None:
        """Let a row go on from a window of what it has read, which begins some bars later.

        Args:
            row: which; the others are as before.
            ids_T: the window, shorter than what the row has read and up to its last token.
            num_skipped: bars left out of what it has read.
        """
        given = None if self.injection is None else self.injection.rows()[row]
        own = DecodeCache(self.model, 1, given and given.later_bars(num_skipped), self._layers)
        own.read(ids_T)
        self.store.take_row(row, own.store)
        num_open = own._open_BI.shape[1]
        self._open_BI[row, :num_open] = own._open_BI[0]
        self._open_BI[row, num_open:] = False
        if self.injection is not None and own.injection is not None:
            summaries_BSD = self.injection.summaries_BSD.clone()
            summaries_BSD[row, :num_open] = own.injection.summaries_BSD[0]
            mask_BS = self._open_BI.to(self.injection.mask_BS.device)
            self.injection = replace(self.injection, summaries_BSD=summaries_BSD, mask_BS=mask_BS)

    def keep(self, rows_R: Tensor) -> None:
        """Go on with some of the rows, in this order."""
        self.store.keep(rows_R)
        self._open_BI = self._open_BI[rows_R]
        if self.injection is not None:
            given = self.injection
            rows_R = rows_R.to(given.mask_BS.device)
            self.injection = replace(
                given, summaries_BSD=given.summaries_BSD[rows_R], mask_BS=given.mask_BS[rows_R]
            )

    @torch.no_grad()
    def close_bar(self, rows_R: Tensor, bar_R: Tensor) -> None:
        """Compute the summaries of bars that have ended, so that later tokens can read them.

        Args:
            rows_R: rows whose newest bar ends.
            bar_R: its number, which is also its summary slot.
        """
        if not len(rows_R) or not self.model.config.summaries:
            return
        store = self.store
        store.reserve_slots(int(bar_R.max()) + 1)
        store.slot_piece_BS[rows_R, bar_R] = 0
        keys = Label(*(field[rows_R][:, None, :] for field in store.key_labels()))
        queries = Label(
            torch.zeros_like(bar_R)[:, None, None],
            bar_R[:, None, None],
            keys.instrument,
            keys.index,
            bar_R[:, None, None],
            torch.ones((), dtype=torch.bool, device=self.device),
        )
        is_read_R1N = masks.summary_reads(queries, keys)
        # Of the tokens it is the prefix and one bar: to copy all for that would cost the most.
        num_slots = store.slot_piece_BS.shape[1]
        places_P = is_read_R1N[:, 0, num_slots:].any(dim=0).nonzero()[:, 0]
        slots_R1S, tokens_R1T = is_read_R1N[:, None].split([num_slots, store.num_tokens], dim=-1)
        bias_R11N = self._bias(torch.cat([slots_R1S, tokens_R1T[..., places_P]], dim=-1))
        places_P = places_P + store.first_token
        turn = turn_of(
            self.model.angles(bar_R[:, None], torch.zeros_like(bar_R)[:, None]), self.dtype
        )
        slot_R = store.num_open + bar_R
        s_R1D = self.model.summary_start.expand(len(rows_R), 1, -1)
        for index, (layer, cache) in enumerate(zip(self._layers, store.layers, strict=True)):
            if self.injection is not None and index == self.injection.layer:
                s_R1D = self._closed(self.injection, s_R1D, rows_R, bar_R)
            q, *own = layer.read(s_R1D, turn)
            for summary, own_RG1K in zip(cache.summary, own, strict=True):
                summary[rows_R, :, bar_R] = own_RG1K[:, :, 0]
            k, v = (
                torch.cat([summary[rows_R], read[rows_R[:, None], :, places_P].transpose(1, 2)], 2)
                for read, summary in zip(cache.read, cache.summary, strict=True)
            )
            s_R1D = layer.add_attention(s_R1D, _attend(q, k, v, bias_R11N))
            for read, own_RG1K in zip(cache.read, layer.coarse(s_R1D, turn), strict=True):
                read[rows_R, :, slot_R] = own_RG1K[:, :, 0]
            if not self.model.layers[index].is_last:
                s_R1D = layer.add_ffn(s_R1D)

    def _open(self, injection: Injection) -> None:
        """Compute open summaries: they read no token, so all of them are known at the start."""
        self._open_BI = injection.mask_BS.to(self.device, copy=True)
        self.store.open_slots(self._open_BI.shape[1])  # the layers below leave this place empty
        slot_BI = torch.arange(self._open_BI.shape[1], device=self.device).expand_as(self._open_BI)
        absent = torch.full_like(slot_BI, -1)
        piece_BI = torch.where(self._open_BI, 0, -1)
        labels = Label(piece_BI, slot_BI, absent, absent, slot_BI, self._open_BI)
        rows, columns = (
            Label(*(field[:, None, :, None] for field in labels)),
            Label(*(field[:, None, None, :] for field in labels)),
        )
        call = CallPlan(masks.open_reads_open(rows, columns))
        rule = masks.rule_of(self.model.config.rule)
        plan = AttentionPlan(call, (), rule).for_dtype(self.dtype)
        angles = self.model.angles(slot_BI, torch.zeros_like(slot_BI))
        none_BID = torch.zeros_like(injection.summaries_BSD, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            _, o_BID = injection.streams(none_BID, piece_BI)
            layers = list(zip(self.model.layers, self.store.layers, strict=True))
            for layer, cache in layers[injection.layer :]:
                assert isinstance(layer, Layer)
                o_BID = layer.open_summarize(o_BID, angles, plan)
                cache.read = torch.stack(layer.coarse_keys_values(o_BID, angles))
                if not layer.is_last:
                    o_BID = layer.add_ffn(o_BID)

    def _closed(self, injection: Injection, s_R1D: Tensor, rows_R: Tensor, bar_R: Tensor) -> Tensor:
        """Where closed summaries of some bars begin above the injection layer."""
        slot_R = bar_R.clamp(max=self._open_BI.shape[1] - 1)
        is_open_R1 = (self._open_BI[rows_R, slot_R] & (slot_R == bar_R))[:, None]
        injected_R1D = injection.summaries_BSD.to(s_R1D)[rows_R, slot_R][:, None]
        own = replace(injection, summaries_BSD=injected_R1D, mask_BS=is_open_R1)
        return own.streams(s_R1D, torch.where(is_open_R1, 0, -1))[0]

    def _with_open(self, mask_BHNN: Tensor, queries: Label) -> Tensor:
        """The mask with open summaries before the finished ones."""
        if not self.store.num_open:
            return mask_BHNN
        bar_I = torch.arange(self.store.num_open, device=self.device)
        piece_BI = torch.where(self._open_BI, 0, -1)
        keys = Label(piece_BI[:, None], bar_I, -1, -1, bar_I, self._open_BI[:, None])
        of_open = masks.token_reads_open(queries, keys)[:, None]
        of_open = of_open.expand(-1, mask_BHNN.shape[1], -1, -1)
        return torch.cat([of_open, mask_BHNN], dim=-1)

    def _bias(self, mask: Tensor) -> Tensor:
        """What attention adds to its scores: the form of a mask that no layer converts again."""
        none = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        return none.masked_fill_(~mask, -torch.inf)

    def _token_mask(self, queries: Label, keys: Label) -> Tensor:
        """(B, H, N, S + T) bool, each head group under its own rule."""
        config = self.model.config
        queries_per_kv = config.num_heads // config.num_kv_heads
        return torch.cat(
            [
                masks.token_reads(group, queries, keys)[:, None].expand(
                    -1, (heads.stop - heads.start) * queries_per_kv, -1, -1
                )
                for group, heads in self._groups
            ],
            dim=1,
        )


@dataclass(frozen=True)
class StepLabels:
    """Where N new tokens of every row stand, each (B, N) int64; see masks.Layout."""

    bar: Tensor
    instrument: Tensor
    index: Tensor
    onset: Tensor

    @classmethod
    def from_numpy(cls, labels: np.ndarray, device: torch.device) -> "StepLabels":
        """Of a (4, B, N) array in the order of the fields."""
        return cls(*torch.from_numpy(labels).to(device).unbind(0))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )
