"""Where cached keys and values lie: room that grows, and loses what no later token can read."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import Label, Rule, rule_of

_LEAST_TOKENS, LEAST_SLOTS = 256, 32


@dataclass
class LayerCache:
    """Keys and values of one layer; the first axis says which, the second is the row.

    Args:
        read: (2, B, G, I + S + T, K) of all that tokens read, in one piece of memory: of the open
            summaries (I = 0 where there are none), of finished ones (K2 and V2), of tokens.
        summary: (2, B, G, S, K) of the summary stream, read by later summaries.
    """

    read: Tensor
    summary: Tensor


def bars_within_reach(rule: Rule) -> int | None:
    """How many bars back some head group reads single tokens; None where any bar may be read.

    >>> from meloformer.model.masks import RULES
    >>> bars_within_reach(RULES["museformer"]), bars_within_reach(RULES["halves"])
    (32, None)
    """
    reach = 0
    for group in rule:
        if group.same_instrument or group.bar_distances is None:
            return None
        reach = max(reach, *group.bar_distances, 0)
    return reach


class CacheStore:
    """Keys and values of B rows with their labels.

    All rows share their places, one more for each step; a row that has no token at a place has
    padding there (piece -1). What is still read of a row stands in the order of time.

    Args:
        config: of the model.
        num_rows: B.
        weight: any parameter; keys and values take its device and precision.
        room: tokens and slots to begin with, which double when they are used up: few shapes in
            all. If not given, room is made as it is needed.

    Attributes:
        num_changes: how often labels changed otherwise than by one more token or summary.
    """

    def __init__(
        self,
        config: MuseFormerConfig,
        num_rows: int,
        weight: Tensor,
        room: tuple[int, int] | None = None,
    ) -> None:
        self.num_tokens = self.num_open = self.num_changes = 0
        self._doubles = room is not None
        tokens, slots = room or (0, 0)
        self._device = weight.device
        self._reach = bars_within_reach(rule_of(config.rule))

        def empty(length: int) -> Tensor:
            shape = (2, num_rows, config.num_kv_heads, length, config.head_width)
            return weight.new_zeros(shape)

        self.layers = [
            LayerCache(empty(slots + tokens), empty(slots)) for _ in range(config.num_layers)
        ]
        # Rows: piece, bar, instrument, index; absent tokens and summaries are padding (-1).
        self.labels_4BT = np.full((4, num_rows, tokens), -1, dtype=np.int32)
        self.slot_piece_BS = np.full((num_rows, slots), -1, dtype=np.int32)

    @property
    def first_token(self) -> int:
        """Where the tokens begin in `LayerCache.read`."""
        return self.num_open + self.slot_piece_BS.shape[1]

    @property
    def num_bytes(self) -> int:
        """What keys and values take, room to grow included."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.layers
            for tensor in (layer.read, layer.summary)
        )

    def key_labels(self) -> Label:
        """Labels (B, S + T) of all keys but the open ones, summaries first."""
        num_rows, num_slots = self.slot_piece_BS.shape
        labels = np.empty((5, num_rows, num_slots + self.num_tokens), dtype=np.int32)
        of_slots, of_tokens = labels[:, :, :num_slots], labels[:, :, num_slots:]
        of_slots[0], of_slots[1], of_slots[2:4] = self.slot_piece_BS, np.arange(num_slots), -1
        of_slots[4] = of_slots[1]
        of_tokens[:4] = self.labels_4BT[:, :, : self.num_tokens]
        of_tokens[4] = np.arange(self.num_tokens)
        piece, bar, instrument, index, time = labels
        is_summary = np.broadcast_to(np.arange(labels.shape[2]) < num_slots, piece.shape)
        return Label(piece, bar, instrument, index, time, is_summary)

    def open_slots(self, num_open: int) -> None:
        """Make place for open summaries; before anything else is stored."""
        self.num_open = num_open
        for layer in self.layers:
            layer.read = F.pad(layer.read, (0, 0, 0, num_open))

    def append(self, labels_4BN: np.ndarray) -> slice:
        """Take so many more tokens of every row; their places in `LayerCache.read`."""
        num_new = labels_4BN.shape[2]
        self._reserve(num_new)
        start, stop = self.num_tokens, self.num_tokens + num_new
        self.labels_4BT[:, :, start:stop] = labels_4BN
        self.num_tokens = stop
        self.num_changes += num_new > 1
        return slice(self.first_token + start, self.first_token + stop)

    def keep(self, rows_R: np.ndarray) -> None:
        """Go on with some of the rows, in this order."""
        self.num_changes += 1
        kept_R = torch.from_numpy(rows_R).to(self._device)
        for layer in self.layers:
            layer.read, layer.summary = layer.read[:, kept_R], layer.summary[:, kept_R]
        self.labels_4BT = self.labels_4BT[:, rows_R]
        self.slot_piece_BS = self.slot_piece_BS[rows_R]

    def take_row(self, row: int, other: "CacheStore") -> None:
        """Let a row be the only row of another store, which has read no more than the row did.

        Of what both have read, either may have dropped more, each at its own time.
        """
        self.num_changes += 1
        num_new, num_slots = other.num_tokens, int((other.slot_piece_BS[0] >= 0).sum())
        assert num_slots <= self.slot_piece_BS.shape[1]
        # Making room may drop some more of what is out of reach.
        while (missing := num_new - self.num_tokens) > 0:
            nothing = np.full(
                (4, len(self.slot_piece_BS), missing), -1, dtype=self.labels_4BT.dtype
            )
            self.append(nothing)
        # At the end, so that all that is read of a row lies together.
        start, stop = self.num_tokens - num_new, self.num_tokens
        self.labels_4BT[0, row] = -1
        self.labels_4BT[:, row, start:stop] = other.labels_4BT[:, 0, :num_new]
        self.slot_piece_BS[row] = -1
        self.slot_piece_BS[row, :num_slots] = 0
        places = (
            (slice(0, other.num_open), 0),
            (slice(other.num_open, other.num_open + num_slots), self.num_open),
            (slice(other.first_token, other.first_token + num_new), self.first_token + start),
        )
        for own, given in zip(self.layers, other.layers, strict=True):
            own.summary[:, row, :, :num_slots] = given.summary[:, 0, :, :num_slots]
            for source, first in places:
                part = given.read[:, 0, :, source]
                own.read[:, row, :, first : first + part.shape[2]] = part

    def reserve_slots(self, num_slots: int) -> None:
        """Make room for summaries, doubling, so that growth costs constant time per bar."""
        slots = self.slot_piece_BS.shape[1]
        if num_slots <= slots:
            return
        self.num_changes += 1
        longer = max(num_slots, 2 * slots, LEAST_SLOTS)
        if self._doubles:
            longer = doubled(slots, num_slots)
        extra, first = longer - slots, self.first_token
        for layer in self.layers:
            summaries = F.pad(layer.read[:, :, :, :first], (0, 0, 0, extra))
            layer.read = torch.cat([summaries, layer.read[:, :, :, first:]], dim=3)
            layer.summary = F.pad(layer.summary, (0, 0, 0, extra))
        self.slot_piece_BS = _longer(self.slot_piece_BS, extra)

    def _reserve(self, num_new: int) -> None:
        """Make room for tokens: drop what nobody reads if that is worth it, or grow by half.

        Either happens after so many steps that it costs constant time per token, and the room is at
        most twice what was needed.
        """
        room = self.labels_4BT.shape[2]
        if self.num_tokens + num_new <= room:
            return
        self.num_changes += 1
        is_read_BT = self._is_read()
        num_read = int(is_read_BT.sum(axis=1).max())
        if 4 * (num_read + num_new) <= 3 * room:
            self._drop(is_read_BT, num_read)
            return
        extra = max(self.num_tokens + num_new - room, room // 2, _LEAST_TOKENS)
        if self._doubles:
            extra = doubled(room, self.num_tokens + num_new) - room
        for layer in self.layers:
            layer.read = F.pad(layer.read, (0, 0, 0, extra))
        self.labels_4BT = _longer(self.labels_4BT, extra)

    def _is_read(self) -> np.ndarray:
        """(B, T) bool: which tokens some later token or summary may read."""
        piece_BT, bar_BT = self.labels_4BT[:2, :, : self.num_tokens]
        is_read_BT = piece_BT >= 0
        if self._reach is None or not self.num_tokens:
            return is_read_BT
        now_B1 = np.where(is_read_BT, bar_BT, -1).max(axis=1, keepdims=True)
        return is_read_BT & ((bar_BT < 0) | (bar_BT >= now_B1 - self._reach))

    def _drop(self, is_read_BT: np.ndarray, length: int) -> None:
        """Move what is read of each row together, in its order, up to the same last place."""
        order_BT = is_read_BT.argsort(axis=1, kind="stable")[:, self.num_tokens - length :]
        labels_4BT = np.take_along_axis(self.labels_4BT, order_BT[None], axis=2)
        labels_4BT[0][~np.take_along_axis(is_read_BT, order_BT, axis=1)] = -1
        self.labels_4BT.fill(-1)
        self.labels_4BT[:, :, :length] = labels_4BT
        first, order = self.first_token, torch.from_numpy(order_BT).to(self._device)
        for layer in self.layers:
            tokens = layer.read[:, :, :, first : first + self.num_tokens]
            index = order[None, :, None, :, None].expand(*tokens.shape[:3], -1, tokens.shape[4])
            layer.read[:, :, :, first : first + length] = tokens.gather(3, index)
        self.num_tokens = length


def doubled(room: int, needed: int) -> int:
    """Room that is enough, by doubling alone.

    >>> doubled(32, 20), doubled(32, 65)
    (32, 128)
    """
    while room < needed:
        room *= 2
    return room


def _longer(labels: np.ndarray, extra: int) -> np.ndarray:
    """With so many places of padding (-1) behind the last."""
    padding = np.full((*labels.shape[:-1], extra), -1, dtype=labels.dtype)
    return np.concatenate([labels, padding], axis=-1)
