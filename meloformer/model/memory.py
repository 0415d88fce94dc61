"""Bytes that a forward pass keeps for the backward pass, and their peak, by formula.

Every term is a tensor that autograd keeps, under the name of the part that keeps it. Counted are
the tensors of the block-sparse kernel: queries, keys, values, result and log-sum-exp, never scores
or a dense mask. A model that trains with open summaries has room for them in all of its rows.
"""

from collections import Counter
from dataclasses import dataclass, replace

from meloformer.model import masks
from meloformer.model.config import Checkpointing, MuseFormerConfig

_FP32, _INT32, _INT64 = 4, 4, 8


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Size of a micro-batch and the way it is computed.

    Args:
        rows: B.
        tokens: T, tokens of a row.
        summaries: S, summaries of a row.
        element_bytes: of the model's dtype: 2 in bf16, 4 in fp32.
        attention_bytes: of the dtype of the attention call, if it is another one.
        checkpointing: what the backward pass computes again.
        is_norm_fused: RMSNorm is one kernel, which keeps its input; without (on a CPU) its parts
            keep a product in fp32 besides.
        is_compiled: the pointwise parts and the loss are compiled (model/fused.py): they keep their
            inputs, and nothing that can be computed again from them on the way. None is for whoever
            knows the device to settle, and no here.
    """

    rows: int
    tokens: int
    summaries: int
    element_bytes: int = 2
    attention_bytes: int | None = None
    checkpointing: Checkpointing = "none"
    is_norm_fused: bool = True
    is_compiled: bool | None = None

    @classmethod
    def of(cls, rows: int, tokens: int, **how: object) -> "BatchSize":
        """The size with the summaries that rows of so many tokens have room for."""
        summaries = masks.num_summaries(tokens)
        return cls(rows=rows, tokens=tokens, summaries=summaries, **how)  # type: ignore[arg-type]


def kept_bytes(config: MuseFormerConfig, size: BatchSize) -> Counter[str]:
    """What is kept from the forward to the backward pass, by part of the model."""
    kept: Counter[str] = Counter()
    for index in range(config.num_layers):
        kept += _kept_by_layer(config, size, index)
    num_tokens, e = size.rows * size.tokens, size.element_bytes
    if size.checkpointing == "layer" or size.is_compiled:
        slots = size.summaries if config.summaries else 0
        kept["rotations"] += _FP32 * size.rows * (size.tokens + slots) * config.head_width // 2
    kept["norms"] += _norm(size, num_tokens, config.width, input_width=config.width)
    kept["norms"] += e * num_tokens * config.width
    if config.num_open_layers:
        # How far summaries lie from their mean, the noise that is scaled by it, and which of them
        # are of one piece.
        kept["open summaries"] += 2 * e * size.rows * size.summaries * config.width
        kept["open summaries"] += e * size.rows * size.summaries**2
    # Onsets and instruments as indices; the ids are the batch's own.
    kept["embeddings"] += 2 * _INT64 * num_tokens
    kept["loss"] += (e if size.is_compiled else _FP32) * num_tokens * config.vocab_size
    if size.is_compiled:
        kept["loss"] += 2 * _FP32 * num_tokens
    return kept


def batch_bytes(config: MuseFormerConfig, size: BatchSize) -> int:
    """Ids, targets, labels and block plans of a micro-batch, which all layers share."""
    labels = size.rows * (
        2 * _INT64 * size.tokens + _INT32 * (5 * size.tokens + 2 * size.summaries)
    )
    rule = masks.rule_of(config.rule)
    slots = size.summaries if config.summaries else 0
    tokens, of_slots = (-(-count // masks.BLOCK_SIZE) for count in (size.tokens, slots))
    pairs = (len(rule) * tokens + of_slots) * (of_slots + tokens)
    if config.num_open_layers:
        pairs += len(rule) * tokens * (2 * of_slots + tokens)
        # Which of them read each other is a dense mask on every device.
        mask_bytes = 1 + (size.attention_bytes or size.element_bytes)
        labels += size.rows * slots * (_INT32 + slots * mask_bytes)
    # Partial and full blocks, by query for the forward pass and by key for the backward pass.
    blocks = 4 * _INT32 * size.rows * pairs
    reordered = sum(group.order == "instrument" for group in rule)
    orders = 2 * _INT64 * size.rows * size.tokens * reordered
    return labels + blocks + orders


def peak_bytes(config: MuseFormerConfig, size: BatchSize) -> int:
    """Most bytes at once of one forward and backward pass, on top of weights and their gradients.

    The highest of three moments: the loss (logits beside everything that is kept), the first steps
    back through it, and the feed-forward network of one of the last layers on the way back, with
    what checkpointing has computed again for it.
    """
    e, num_tokens = size.element_bytes, size.rows * size.tokens
    kept = kept_bytes(config, size)
    everything = sum(kept.values()) + batch_bytes(config, size)
    logits, row = num_tokens * config.vocab_size, size.tokens * config.vocab_size
    if size.is_compiled:
        # Logits are among what is kept; their gradient comes in one piece.
        loss, back_through_loss = 0, e * logits
    else:
        # The loss is taken row by row in fp32.
        loss = e * logits + (_FP32 * row if e != _FP32 else 0)
        back_through_loss = 2 * _FP32 * row + e * row

    # Not the last layer: it runs no feed-forward network on the summaries.
    inner = max(config.num_layers - 2, 0)
    plain = replace(size, checkpointing="none")
    again = 0
    if size.checkpointing == "layer":
        again = sum(_kept_by_layer(config, plain, inner).values())
    elif size.checkpointing == "ffn":
        again = sum(_kept_by_ffn(config, plain, num_tokens).values())
    gradients = e * num_tokens * (2 * config.ffn_width + config.width)
    norm = _norm(size, num_tokens, config.width, input_width=config.width)
    ffn = again + gradients - kept["loss"] - norm - e * num_tokens * config.width
    return everything + max(loss, back_through_loss, ffn)


def _kept_by_layer(config: MuseFormerConfig, size: BatchSize, index: int) -> Counter[str]:
    is_first, is_last = index == 0, index == config.num_layers - 1
    D, K, e = config.width, config.head_width, size.element_bytes
    tokens = size.rows * size.tokens
    slots = size.rows * size.summaries if config.summaries else 0
    # All slots of the first layer are one vector.
    slot_inputs = 0 if is_first else slots
    open_slots = slots if index >= config.num_layers - config.num_open_layers else 0
    kept: Counter[str] = Counter()
    if size.checkpointing == "layer":
        kept["layer inputs"] = e * D * (tokens + slot_inputs + open_slots)
        return kept

    heads = replace(size, is_norm_fused=bool(size.is_norm_fused or size.is_compiled))
    streams = ((tokens, tokens, 2), (slots, slot_inputs, 3), (open_slots, open_slots, 3))
    for positions, num_kept, turned in streams:
        # Normed states, and queries, keys and values before their norms.
        kept["norms"] += _norm(size, positions, D, num_kept=num_kept) + e * positions * D
        kept["queries"] += _norm(heads, positions * config.num_heads, K)
        kept["keys and values"] += _norm(
            heads, positions * config.num_kv_heads, K, input_width=2 * K
        )
        # Cosines and sines of each rotation: of queries, keys and, for summaries, K2.
        kept["rotations"] += 0 if size.is_compiled else e * turned * positions * K
    kept += _kept_by_attention(config, size, tokens, slots, open_slots)
    kept += _kept_by_ffn(config, size, tokens)
    for positions in filter(None, (slots, open_slots)):
        # K2 and V2, from the summaries after SUMMARIZE, whose own norm keeps what it reads.
        kept["norms"] += _norm(size, positions, D) + e * positions * D
        kept["keys and values"] += _norm(
            heads, positions * config.num_kv_heads, K, input_width=2 * K
        )
        if not is_last:
            kept += _kept_by_ffn(config, size, positions, is_input_kept=_keeps_input(size))
    return +kept


def _kept_by_attention(
    config: MuseFormerConfig, size: BatchSize, tokens: int, slots: int, open_slots: int
) -> Counter[str]:
    """Both stages: inputs of the kernel, its result and log-sum-exp, the heads side by side.

    Keys and values of tokens are kept twice, behind the summaries that each stage reads. Open
    summaries are a SUMMARIZE of their own, whose keys nothing is joined to.
    """
    D, H, e = config.width, config.num_heads, size.element_bytes
    a = size.attention_bytes or e
    kv_width = config.num_kv_heads * config.head_width
    keys = tokens + slots
    # The kernel's result lies as queries do: in the dtype of the model, with one head group in
    # time, heads side by side are that result.
    rule = masks.rule_of(config.rule)
    is_plain = len(rule) == 1 and rule[0].order != "instrument"
    side_by_side = 0 if a == e else e
    # Where nothing is joined or cast, values are the projection itself, which the keys' norm keeps.
    is_there = _keeps_input(size) or size.is_compiled
    alone = 2 * a if a != e else e * (1 if is_there else 3)
    kept: Counter[str] = Counter()
    for positions in (slots, open_slots):
        kept["queries"] += a * positions * D
        kept["attention results"] += (a + side_by_side) * positions * D + _FP32 * positions * H
    if slots:
        kept["keys and values"] += 2 * a * keys * kv_width
    kept["keys and values"] += alone * open_slots * kv_width
    # Whatever the groups and their orders: of each head one copy, which the kernel reads.
    kept["queries"] += a * tokens * D
    kept["attention results"] += (a + (side_by_side if is_plain else e)) * tokens * D
    kept["attention results"] += _FP32 * tokens * H
    if slots or not is_plain:
        kept["keys and values"] += 2 * a * (keys + open_slots) * kv_width
    else:
        kept["keys and values"] += alone * tokens * kv_width
    return kept


def _kept_by_ffn(
    config: MuseFormerConfig, size: BatchSize, positions: int, is_input_kept: bool = False
) -> Counter[str]:
    """Normed states; gate and value, SiLU of the gate if that is a step of its own, the product."""
    D, e = config.width, size.element_bytes
    if size.checkpointing == "ffn":
        return Counter({"ffn inputs": 0 if is_input_kept else e * positions * D})
    norm = _norm(size, positions, D, num_kept=0 if is_input_kept else positions)
    streams = 3 if size.is_compiled else 4
    ffn = streams * e * positions * config.ffn_width
    return Counter({"norms": norm + e * positions * D, "ffn": ffn})


def _keeps_input(size: BatchSize) -> bool:
    """Whether RMSNorm keeps the very tensor that it is given, which another may keep too."""
    return size.is_norm_fused or size.element_bytes == _FP32


def _norm(
    size: BatchSize,
    vectors: int,
    width: int,
    *,
    input_width: int | None = None,
    num_kept: int | None = None,
) -> int:
    """Bytes that an RMSNorm keeps.

    Args:
        size: how the batch is computed.
        vectors: number of vectors that are normed.
        width: of a vector.
        input_width: of the tensor that the vector is a part of, kept whole.
        num_kept: vectors of the input that nothing else keeps; all if not given.
    """
    kept = _FP32 * vectors
    if _keeps_input(size):
        num_kept = vectors if num_kept is None else num_kept
        kept += size.element_bytes * num_kept * (input_width or width)
    else:
        kept += _FP32 * (vectors if num_kept is None or num_kept else 0) * width
    if not size.is_norm_fused:
        kept += _FP32 * vectors * width
    return kept


def dense_mask_bytes(config: MuseFormerConfig, size: BatchSize) -> int:
    """Masks of the dense backend, allowed pairs and numbers to add, which all layers share."""
    slots = size.summaries if config.summaries else 0
    of_tokens = len(masks.rule_of(config.rule)) * size.tokens
    pairs = (of_tokens + slots) * (size.tokens + slots)
    if config.num_open_layers:
        pairs += of_tokens * (size.tokens + 2 * slots)
    return size.rows * pairs * (1 + (size.attention_bytes or size.element_bytes))
