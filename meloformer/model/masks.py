"""Who may read whom: the rules, written once, for numpy and torch alike.

Every rule is a test on pairs of labels. A label says where a token or a summary stands: piece in
the row (-1 padding), bar in the piece (-1 prefix), instrument (0 header tokens, i.e. the bar
token, metre and tempo; 1.. instruments; -1 prefix), index in the bar (0 is the bar token) and time
(the position in the row before any reordering). The operators used here work elementwise on
arrays of both libraries and on the scalars of a FlexAttention mask function.

Sources: the bar distances of `museformer` are those of Museformer (Yu et al. 2022, section 3.2).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from meloformer.errors import ConfigError

Order = Literal["bar", "instrument"]

# Queries and keys along each side of a block of the sparse kernel, unless others are asked for.
BLOCK_SIZE = 128
BLOCK_SIZES = (64, 128)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where every token and every summary of a batch stands; numpy arrays or torch tensors.

    Args:
        piece_BT: piece of the row, 0.. in order; -1 padding.
        bar_BT: bar in its window, 0..; -1 prefix and padding.
        instrument_BT: 0 header tokens, 1 + instrument of midi/grid.py; -1 prefix and padding.
        onset_BT: steps from the bar line of the onset in force, 0 where there is none.
        index_BT: position inside the bar (bar token = 0) or inside the prefix.
        piece_BS: piece of each summary; -1 padding.
        bar_BS: bar of each summary; 0 for padding.
        open_BS: piece of each bar that has an open summary too, see model/injection.py; -1 where
            a bar has none; None where no bar of the batch can have one.
    """

    piece_BT: Any
    bar_BT: Any
    instrument_BT: Any
    onset_BT: Any
    index_BT: Any
    piece_BS: Any
    bar_BS: Any
    open_BS: Any = None

    def map(self, function: Callable[[Any], Any]) -> "Layout":
        """The same function of every label; of open ones where there are some."""
        labels = {name: label for name, label in vars(self).items() if label is not None}
        return Layout(**{name: function(label) for name, label in labels.items()})

    def without_summaries(self) -> "Layout":
        """The same tokens with no slot for summaries (S = 0), for a model that has none."""
        return replace(self, piece_BS=self.piece_BS[:, :0], bar_BS=self.bar_BS[:, :0], open_BS=None)


class Label(NamedTuple):
    """Labels of some tokens or summaries, broadcastable against another set.

    A summary has `is_summary` set, its slot as `time`, and no instrument or index (-1).
    """

    piece: Any
    bar: Any
    instrument: Any
    index: Any
    time: Any
    is_summary: Any


@dataclass(frozen=True)
class HeadGroup:
    """Some key/value heads, the tokens that they read and the order in which they are stored.

    Args:
        same_instrument: read the own instrument in any earlier bar.
        bar_distances: read everything at these bar distances; None reads every earlier bar.
        order: storage order inside the attention call: time, or instrument by instrument.
        share: relative number of key/value heads.
    """

    same_instrument: bool
    bar_distances: tuple[int, ...] | None
    order: Order = "bar"
    share: int = 1


Rule = tuple[HeadGroup, ...]

NEAR_BARS = (0, 1, 2, 4)
MUSEFORMER_BARS = (0, 1, 2, 4, 8, 12, 16, 24, 32)

RULES: dict[str, Rule] = {
    "museformer": (HeadGroup(False, MUSEFORMER_BARS),),
    "hid": (HeadGroup(True, NEAR_BARS, "instrument"),),
    "halves": (HeadGroup(True, (), "instrument"), HeadGroup(False, NEAR_BARS)),
    "full": (HeadGroup(False, None),),
}


def rule_of(name: str | Rule) -> Rule:
    """The rule of a preset name; head groups are a rule already."""
    if isinstance(name, tuple):
        return name
    if name not in RULES:
        raise ConfigError(f"attention rule {name!r} is unknown; allowed: {', '.join(RULES)}")
    return RULES[name]


def split_heads(rule: Rule, num_kv_heads: int) -> tuple[slice, ...]:
    """Key/value heads of each group.

    >>> split_heads(RULES["halves"], 4)
    (slice(0, 2, None), slice(2, 4, None))
    """
    shares = sum(group.share for group in rule)
    if num_kv_heads % shares:
        raise ConfigError(
            f"{num_kv_heads} key/value heads cannot be shared out over {shares} parts of the rule; "
            f"allowed: multiples of {shares}; take another size, or a rule of other shares"
        )
    edges = np.cumsum([0] + [group.share * num_kv_heads // shares for group in rule])
    return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(edges))


def _in_distances(distance: Any, bar_distances: tuple[int, ...]) -> Any:
    hit = distance == bar_distances[0] if bar_distances else distance != distance
    for value in bar_distances[1:]:
        hit = hit | (distance == value)
    return hit


def _token_reads_token(group: HeadGroup, q: Label, k: Label) -> Any:
    """Fine rule: not later, and prefix, own bar token, or what the group reads."""
    chosen = (k.bar < 0) | ((k.bar == q.bar) & (k.index == 0))
    if group.bar_distances is None:
        chosen = chosen | (k.bar >= 0)
    else:
        chosen = chosen | _in_distances(q.bar - k.bar, group.bar_distances)
        if group.same_instrument:
            chosen = chosen | (k.instrument == q.instrument)
    return chosen & (k.time <= q.time)


def token_reads(group: HeadGroup, q: Label, k: Label) -> Any:
    """UPDATE: does token q read token or summary k?

    Coarse rule, over summaries: strictly finished bars. `<` and not `<=`: a bar's summary has read
    the bar's last token, so a token that read its own bar's summary would see its own future.
    Padding reads itself alone, so that no softmax is empty.
    """
    same_piece = (k.piece == q.piece) & (q.piece >= 0)
    coarse = k.is_summary & (k.bar < q.bar)
    fine = ~k.is_summary & _token_reads_token(group, q, k)
    return (same_piece & (coarse | fine)) | (~k.is_summary & (k.time == q.time))


def summary_reads(q: Label, k: Label) -> Any:
    """SUMMARIZE: does summary q read token or summary k?

    It gathers the prefix and the tokens of its own bar, itself and the summaries of earlier bars.
    Padding reads itself alone.
    """
    same_piece = (k.piece == q.piece) & (q.piece >= 0)
    coarse = k.is_summary & (k.bar <= q.bar)
    fine = ~k.is_summary & ((k.bar < 0) | (k.bar == q.bar))
    return (same_piece & (coarse | fine)) | (k.is_summary & (k.time == q.time))


def token_reads_open(q: Label, k: Label) -> Any:
    """UPDATE above the injection layer: does token q read open summary k?

    That of its own bar, which knows no token of it; the prefix reads those of all bars. Padding
    reads none.
    """
    same_piece = (k.piece == q.piece) & (q.piece >= 0)
    return same_piece & ((q.bar < 0) | (k.bar == q.bar))


def open_reads_open(q: Label, k: Label) -> Any:
    """Does open summary q read open summary k? Those up to its own bar; padding reads itself."""
    same_piece = (k.piece == q.piece) & (q.piece >= 0)
    return (same_piece & (k.bar <= q.bar)) | (k.time == q.time)


def num_summaries(seq_len: int) -> int:
    """Summary capacity S of a row of `seq_len` tokens: a bar per 16 tokens, in whole blocks.

    >>> num_summaries(1024), num_summaries(8192)
    (128, 512)
    """
    return -(-max(seq_len // 16, 1) // BLOCK_SIZE) * BLOCK_SIZE


def instrument_order(piece_T: np.ndarray, instrument_T: np.ndarray) -> np.ndarray:
    """Storage order: piece by piece, instrument by instrument, in time; padding last.

    Returns:
        (T,) int32: entry i is the time index of the token stored at i.
    """
    num_pieces, num_instruments = piece_T.max(initial=-1) + 1, instrument_T.max(initial=-1) + 2
    last = np.where(piece_T < 0, num_pieces, piece_T).astype(np.int64)
    key_T = last * num_instruments + instrument_T + 1
    if (num_pieces + 1) * num_instruments <= np.iinfo(np.int16).max:
        key_T = key_T.astype(np.int16)  # sorted by radix, several times as quickly
    return np.argsort(key_T, kind="stable").astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class KernelLabels:
    """What the mask function of one attention call compares; int32 arrays of either library.

    A key is read from a first time to a last one, and that nearly says all: query q reads key k
    where `first[k] <= time[q]` and one of these holds:

    - `time[q] <= last[k]` and, where there are bits, the bit of q is among those of k;
    - the codes of q and k are equal, in any of the pairs of code arrays.

    Times are tokens of the row in UPDATE, slots in SUMMARIZE. Arrays stand in storage order.

    Args:
        first_BN: first time at which each key is read; summaries first, then tokens.
        last_BN: last time; before `first` where the key is never read.
        time_BQ: time of each query; None where that is its place.
        bit_BQ: one bit per query, that of its bar; None where `last` decides alone.
        bits_BN: the bits that each key is read by.
        codes: pairs of (B, Q) and (B, N) arrays.
    """

    first_BN: Any
    last_BN: Any
    time_BQ: Any = None
    bit_BQ: Any = None
    bits_BN: Any = None
    codes: tuple[tuple[Any, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageBlocks:
    """Which blocks of one attention call hold allowed pairs; int32 arrays of either library.

    Args:
        kv_num_BQ: number of partly allowed key blocks of each query block.
        kv_index_BQN: their indices, first `kv_num` of each list.
        full_num_BQ: number of wholly allowed key blocks.
        full_index_BQN: their indices.
        q_num_BN: the same four by key block, which the backward pass walks along.
        q_index_BNQ: their indices.
        full_q_num_BN: number of wholly allowed query blocks.
        full_q_index_BNQ: their indices.
        labels: what decides inside a partly allowed block.
        order_BT: int64 time of the token stored at each place; None where that is the place.
        inverse_BT: int64 place of each token in that order.
    """

    kv_num_BQ: Any
    kv_index_BQN: Any
    full_num_BQ: Any
    full_index_BQN: Any
    q_num_BN: Any
    q_index_BNQ: Any
    full_q_num_BN: Any
    full_q_index_BNQ: Any
    labels: KernelLabels
    order_BT: Any = None
    inverse_BT: Any = None


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Block lists of a batch: one call for SUMMARIZE, one per head group for UPDATE.

    Args:
        summarize: None where the layout has no summaries.
        update: one per head group.
        opened: the same with the keys of open summaries behind the summaries, stored in the orders
            of `update`; none where the layout has no open summaries.
        block_size: queries and keys along each side of a block.
    """

    summarize: StageBlocks | None
    update: tuple[StageBlocks, ...]
    opened: tuple[StageBlocks, ...] = ()
    block_size: int = BLOCK_SIZE
