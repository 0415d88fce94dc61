"""The model that a bench asks for by size."""

from dataclasses import asdict, replace

from meloformer.errors import ConfigError
from meloformer.midi import grid
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.tokens.vocabulary import VOCAB_SIZE


def sized_config(size: str, max_seq_len: int, head_width: int | None = None) -> MuseFormerConfig:
    """Settings of a size under the default rule.

    Args:
        size: a key of SIZES.
        max_seq_len: longest row, in tokens.
        head_width: K; that of the size if not given. The width and the query heads per key/value
            head stay.

    Raises:
        ConfigError: the size cannot have such heads.
    """
    config = MuseFormerConfig(
        **asdict(SIZES[size]),
        vocab_size=VOCAB_SIZE,
        num_onsets=grid.MAX_BAR_STEPS,
        num_instruments=grid.NUM_INSTRUMENTS,
        max_seq_len=max_seq_len,
    )
    if head_width is None:
        return config
    num_heads, rest = divmod(config.width, max(head_width, 1))
    num_kv_heads, rest_kv = divmod(num_heads * config.num_kv_heads, config.num_heads)
    if head_width < 1 or rest or rest_kv or not num_kv_heads:
        raise ConfigError(
            f"--head_width {head_width}: allowed for {size} (width {config.width}): a divisor that "
            "leaves whole key/value heads"
        )
    return replace(config, num_heads=num_heads, num_kv_heads=num_kv_heads)
