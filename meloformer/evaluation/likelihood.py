"""How likely a model finds music: nats per token, beside an n-gram and beside itself half blind."""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.batch import IGNORE_INDEX
from meloformer.batches.collate import Collator, collate_rows
from meloformer.batches.windows import Windows, cut_long_pieces, whole_pieces
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.masks import BLOCK_SIZE, num_summaries, rule_of
from meloformer.model.museformer import Layer, MuseFormer
from meloformer.shards.reader import SplitIndex
from meloformer.tokens.vocabulary import KIND_OF, Kind


def scoring_windows(
    index: SplitIndex, max_seq_len: int, pieces: Iterable[int] | None = None
) -> list[np.ndarray]:
    """Pieces of a split as the sequences that every model is scored on, all attributes told.

    Args:
        index: the split.
        max_seq_len: longer pieces are cut at bar lines.
        pieces: only these; None takes all.
    """
    collator = Collator(index=index, attributes=ALL_ATTRIBUTES)
    whole = Windows.joined(*(whole_pieces(index, shard) for shard in range(index.num_shards)))
    if pieces is not None:
        whole = whole[np.array(list(pieces), dtype=np.int64)]
    windows = cut_long_pieces(index, whole, max_seq_len, num_summaries(max_seq_len))
    return [collator.window_ids(0, sized.window) for sized in windows]


def nats_per_token(
    model: MuseFormer, windows: Sequence[np.ndarray], *, batch_size: int = 8
) -> float:
    """Mean negative log likelihood of all tokens but each window's first.

    Args:
        model: scored on its device.
        windows: token ids, each a sequence that decodes alone.
        batch_size: windows of similar length that are scored together.
    """
    rule = rule_of(model.config.rule)
    device = model.token_embedding.weight.device
    in_order = sorted(windows, key=len)
    nats, num_targets = 0.0, 0
    for start in range(0, len(in_order), batch_size):
        chosen = in_order[start : start + batch_size]
        batch = collate_rows([[ids] for ids in chosen], row_length(chosen)).to(device)
        with torch.no_grad():
            logits_BTV = model(batch.ids_BT, batch.layout, build_plan(batch.layout, rule))
        nats += F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            batch.targets_BT.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        ).item()
        num_targets += batch.num_targets
    if not num_targets:
        raise ConfigError("no token to predict: the windows hold one token each, or none")
    return nats / num_targets


def row_length(windows: Sequence[np.ndarray]) -> int:
    """Whole blocks that hold the longest window and as many bars as any of them has."""
    most_tokens = max(map(len, windows))
    most_bars = max(int((KIND_OF[ids] == Kind.BAR).sum()) for ids in windows)
    length = -(-most_tokens // BLOCK_SIZE) * BLOCK_SIZE
    while num_summaries(length) < most_bars:
        length += BLOCK_SIZE
    return length


def without_summaries(model: MuseFormer) -> MuseFormer:
    """A copy whose tokens read nothing but zeros from the summaries of finished bars."""
    blind = copy.deepcopy(model)
    for layer in blind.layers:
        assert isinstance(layer, Layer)
        torch.nn.init.zeros_(layer.coarse_key_value.weight)
    return blind
