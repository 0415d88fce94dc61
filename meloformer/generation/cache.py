"""Decode one token at a time: cached keys and values of tokens, summaries of finished bars.

Adding tokens and closing bars through the cache computes what the parallel forward pass computes;
storage orders do not matter here, since attention does not depend on the order of its keys.

Who reads whom is decided in numpy, on any device: for one token it is dozens of small calls, each
of which costs several times as much in torch, and the labels come as arrays.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.generation.cache_store import LEAST_SLOTS, CacheStore, doubled
from meloformer.generation.decode_graphs import DecodeGraphs, GraphDecoder
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
        graphs: of the model, through which single tokens go; else each is computed call by call.
        num_bars: that the longest row will have, where there are graphs; more are no error.
    """

    def __init__(
        self,
        model: MuseFormer,
        num_rows: int,
        injection: Injection | None = None,
        layers: Sequence[DecodeLayer] = (),
        graphs: DecodeGraphs | None = None,
        num_bars: int = 0,
    ) -> None:
        self.model = model
        if graphs is not None:
            layers = graphs.layers
            injection = None if injection is None else _with_room(injection)
        with torch.no_grad():
            self._layers = layers or decode_layers(model)
        config = model.config
        weight = model.token_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        room = None if graphs is None else graphs.room(num_bars)
        self.store = CacheStore(config, num_rows, weight, room)
        self._groups = list(
            zip(
                masks.rule_of(config.rule),
                masks.split_heads(masks.rule_of(config.rule), config.num_kv_heads),
                strict=True,
            )
        )
        self.injection = injection
        self._num_closed_layers = config.num_layers if injection is None else injection.layer
        self._open_BI = np.zeros((num_rows, 0), dtype=bool)
        if injection is not None:
            injection.check_width(config.width)
            assert len(injection.summaries_BSD) == num_rows, "one row of summaries a sequence"
            self._open(injection)
        self._decoder: GraphDecoder | None = None
        if graphs is not None:
            self._decoder = GraphDecoder(graphs, self.store, self._open_BI, self._num_closed_layers)

    @torch.no_grad()
    def add(self, ids_BN: np.ndarray, labels_4BN: np.ndarray, active_B: np.ndarray) -> Tensor:
        """Append N tokens to every row; those of one call lie in one bar or in the prefix.

        Args:
            ids_BN: int64 token ids.
            labels_4BN: int64, where they stand: bar, instrument, index, onset; see masks.Layout.
            active_B: bool; rows that have ended are fed padding.

        Returns:
            (B, V) logits after the last token.
        """
        num_new = ids_BN.shape[1]
        bar, instrument, index, _ = labels_4BN.astype(np.int32)
        piece = np.broadcast_to(np.where(active_B, 0, -1)[:, None], bar.shape)
        store = self.store
        places = store.append(np.stack([piece, bar, instrument, index]))
        if self._decoder is not None and num_new == 1:
            return self._decoder.add(ids_BN[:, 0], labels_4BN[:, :, 0], piece[:, 0])

        time_N = np.arange(store.num_tokens - num_new, store.num_tokens)
        piece, bar, instrument, index = (x[:, :, None] for x in (piece, bar, instrument, index))
        queries = Label(piece, bar, instrument, index, time_N[None, :, None], np.False_)
        keys = Label(*(field[:, None, :] for field in store.key_labels()))
        closed_BHNN = self._token_mask(queries, keys)
        bias_BHNN = opened_BHNN = self._bias(closed_BHNN)
        if store.num_open:
            opened_BHNN = self._bias(self._with_open(closed_BHNN, queries))

        bar_BN, instrument_BN, index_BN, onset_BN = self._tensor(labels_4BN)
        x_BND = self.model.embed(self._tensor(ids_BN), onset_BN, instrument_BN)
        turn = turn_of(self.model.angles(bar_BN, index_BN), self.dtype)
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
        ids_1T = ids_T[None].astype(np.int64)
        # The first bar together with the prefix: there is no summary between them.
        edges = [0, *bar_starts(ids_T)[1:-1].tolist(), len(ids_T)]
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            if number:
                self.close_bar(np.array([0]), np.array([number - 1]))
            part = slice(start, stop)
            logits_1V = self.add(ids_1T[:, part], labels_41T[:, :, part], np.array([True]))
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
        if self._decoder is not None:
            self._decoder.open(self._open_BI)
        if self.injection is not None and own.injection is not None:
            summaries_BSD = self.injection.summaries_BSD.clone()
            summaries_BSD[row, :num_open] = own.injection.summaries_BSD[0]
            mask_BS = torch.from_numpy(self._open_BI.copy()).to(self.injection.mask_BS.device)
            self.injection = replace(self.injection, summaries_BSD=summaries_BSD, mask_BS=mask_BS)

    def keep(self, rows_R: np.ndarray) -> None:
        """Go on with some of the rows, in this order."""
        self.store.keep(rows_R)
        self._open_BI = self._open_BI[rows_R]
        if self._decoder is not None:
            self._decoder.open(self._open_BI)
        if self.injection is not None:
            given = self.injection
            kept_R = torch.from_numpy(rows_R).to(given.mask_BS.device)
            self.injection = replace(
                given, summaries_BSD=given.summaries_BSD[kept_R], mask_BS=given.mask_BS[kept_R]
            )

    @torch.no_grad()
    def close_bar(self, rows: np.ndarray, bars: np.ndarray) -> None:
        """Compute the summaries of bars that have ended, so that later tokens can read them.

        Args:
            rows: (R,) rows whose newest bar ends.
            bars: (R,) its number, which is also its summary slot.
        """
        if not len(rows) or not self.model.config.summaries:
            return
        store = self.store
        store.reserve_slots(int(bars.max()) + 1)
        store.slot_piece_BS[rows, bars] = 0
        keys = Label(*(field[rows][:, None, :] for field in store.key_labels()))
        bar = bars[:, None, None]
        queries = Label(0 * bar, bar, keys.instrument, keys.index, bar, np.True_)
        is_read_R1N = masks.summary_reads(queries, keys)
        # Of the tokens it is the prefix and one bar: to copy all for that would cost the most.
        num_slots = store.slot_piece_BS.shape[1]
        is_copied_N = is_read_R1N.any(axis=(0, 1))
        is_copied_N[:num_slots] = True
        bias_R11N = self._bias(is_read_R1N[:, None, :, is_copied_N])
        places_P = self._tensor(np.flatnonzero(is_copied_N)[num_slots:] + store.num_open)
        rows_R, bar_R = self._tensor(rows), self._tensor(bars)
        if self._decoder is not None:
            self._decoder.close(rows_R, bar_R)
        turn = turn_of(
            self.model.angles(bar_R[:, None], torch.zeros_like(bar_R)[:, None]), self.dtype
        )
        slot_R = store.num_open + bar_R
        s_R1D = self.model.summary_start.expand(len(rows_R), 1, -1)
        for index, (layer, cache) in enumerate(zip(self._layers, store.layers, strict=True)):
            if self.injection is not None and index == self.injection.layer:
                s_R1D = self._closed(self.injection, s_R1D, rows, bars)
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
        open_BI = injection.mask_BS.to(self.device)
        self._open_BI = open_BI.cpu().numpy().copy()
        self.store.open_slots(open_BI.shape[1])  # the layers below leave this place empty
        slot_BI = torch.arange(open_BI.shape[1], device=self.device).expand_as(open_BI)
        absent = torch.full_like(slot_BI, -1)
        piece_BI = torch.where(open_BI, 0, -1)
        labels = Label(piece_BI, slot_BI, absent, absent, slot_BI, open_BI)
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
                cache.read[:, :, :, : self.store.num_open] = torch.stack(
                    layer.coarse_keys_values(o_BID, angles)
                )
                if not layer.is_last:
                    o_BID = layer.add_ffn(o_BID)

    def _closed(
        self, injection: Injection, s_R1D: Tensor, rows: np.ndarray, bars: np.ndarray
    ) -> Tensor:
        """Where closed summaries of some bars begin above the injection layer."""
        slots = np.minimum(bars, self._open_BI.shape[1] - 1)
        is_open_R1 = self._tensor((self._open_BI[rows, slots] & (slots == bars))[:, None])
        injected_R1D = injection.summaries_BSD.to(s_R1D)[rows, slots][:, None]
        own = replace(injection, summaries_BSD=injected_R1D, mask_BS=is_open_R1)
        return own.streams(s_R1D, torch.where(is_open_R1, 0, -1))[0]

    def _with_open(self, mask_BHNN: np.ndarray, queries: Label) -> np.ndarray:
        """The mask with open summaries before the finished ones."""
        bar_I = np.arange(self.store.num_open)
        piece_BI = np.where(self._open_BI, 0, -1)
        keys = Label(piece_BI[:, None], bar_I, -1, -1, bar_I, self._open_BI[:, None])
        of_open = masks.token_reads_open(queries, keys)[:, None]
        of_open = np.broadcast_to(of_open, (*mask_BHNN.shape[:3], len(bar_I)))
        return np.concatenate([of_open, mask_BHNN], axis=-1)

    def _bias(self, mask: np.ndarray) -> Tensor:
        """What attention adds to its scores: the form of a mask that no layer converts again."""
        none = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        return none.masked_fill_(self._tensor(~mask), -torch.inf)

    def _token_mask(self, queries: Label, keys: Label) -> np.ndarray:
        """(B, H, N, S + T) bool, each head group under its own rule."""
        config = self.model.config
        queries_per_kv = config.num_heads // config.num_kv_heads
        shape = (len(queries.bar), config.num_heads, queries.bar.shape[1], keys.bar.shape[2])
        mask = np.empty(shape, dtype=bool)
        for group, heads in self._groups:
            of_group = slice(heads.start * queries_per_kv, heads.stop * queries_per_kv)
            mask[:, of_group] = masks.token_reads(group, queries, keys)[:, None]
        return mask

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _with_room(injection: Injection) -> Injection:
    """The same, with room for so many bars that there are few sizes of it."""
    num_bars = injection.mask_BS.shape[1]
    extra = doubled(LEAST_SLOTS, num_bars) - num_bars
    return replace(
        injection,
        summaries_BSD=F.pad(injection.summaries_BSD, (0, 0, 0, extra)),
        mask_BS=F.pad(injection.mask_BS, (0, extra)),
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )
