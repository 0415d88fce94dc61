"""Parameters and floating-point operations by formula, of any configuration."""

from dataclasses import dataclass, replace

from meloformer.model.config import MuseFormerConfig
from meloformer.model.injection import INJECTION_LAYER


def num_parameters(config: MuseFormerConfig) -> int:
    """Trainable parameters; equals the sum over the module's tensors exactly.

    Per layer: queries and output (D x D each), keys and values, K2 and V2 (D x 2GK each), SwiGLU
    (3 D F), three norms of width D and three of width K. Without summaries no K2 and V2, neither
    of their norms, and no start of the summary stream.
    """
    D, K, F = config.width, config.head_width, config.ffn_width
    kv_width = config.num_kv_heads * K
    layer = 2 * D * D + 2 * (D * 2 * kv_width) + 3 * D * F + 3 * D + 3 * K
    embeddings = config.vocab_size + config.num_onsets + config.num_instruments + 2
    parameters = config.num_layers * layer + embeddings * D + D + D
    if not config.summaries:
        parameters -= config.num_layers * (D * 2 * kv_width + D + K) + D
    return parameters


@dataclass(frozen=True)
class StepPairs:
    """Query-key pairs that the rules allow in some rows, the unit of attention work.

    Args:
        update: token reads token or summary, mean over key/value heads.
        summarize: summary reads token or summary.
        opened: token reads open summary, or one of these reads another; in each of the layers above
            the injection layer.
    """

    update: float
    summarize: float
    opened: float = 0.0


def forward_flops(
    config: MuseFormerConfig,
    num_tokens: int,
    num_summaries: int,
    pairs: StepPairs,
    num_open: float = 0,
) -> float:
    """Operations of one forward pass; a multiply-add counts as two.

    Unmasked attention only, summaries included, padding excluded if the caller excludes it.

    Args:
        config: the model.
        num_tokens: tokens of all rows.
        num_summaries: summaries of all rows; a model without summaries has none, whatever this
            says.
        pairs: allowed pairs of all rows.
        num_open: open summaries of all rows, likewise.

    Source: 2 operations per weight and token (Kaplan et al. 2020), 4 K per head and pair
    (scores, then values).
    """
    if not config.summaries:
        num_summaries, num_open, pairs = 0, 0, replace(pairs, summarize=0, opened=0)
    D, F = config.width, config.ffn_width
    kv_width = config.num_kv_heads * config.head_width
    attention_weights = 2 * D * D + D * 2 * kv_width
    token_weights = attention_weights + 3 * D * F
    summary_weights = attention_weights + D * 2 * kv_width + 3 * D * F
    L, num_above = config.num_layers, max(config.num_layers - INJECTION_LAYER, 0)
    num_open = num_open if num_above else 0
    of_summaries = L * num_summaries + num_above * num_open
    linear = 2.0 * (L * num_tokens * token_weights + of_summaries * summary_weights)
    # The last layer runs no feed-forward network on the summaries.
    linear -= 2.0 * (num_summaries + num_open) * 3 * D * F
    head = 2.0 * num_tokens * D * config.vocab_size
    attention = 4.0 * D * (L * (pairs.update + pairs.summarize) + num_above * pairs.opened)
    return linear + head + attention


def training_flops(
    config: MuseFormerConfig,
    num_tokens: int,
    num_summaries: int,
    pairs: StepPairs,
    num_open: float = 0,
) -> float:
    """Operations of forward and backward: three times the forward pass."""
    return 3.0 * forward_flops(config, num_tokens, num_summaries, pairs, num_open)
