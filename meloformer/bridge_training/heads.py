"""Attribute heads of a bridge's run: trained once, before the bridge, by one process."""

import math

from meloformer.bridge.attribute_heads import save_heads
from meloformer.bridge.bridge_folder import HEADS_NAME
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge_training.heads_of_captions import heads_of_captions
from meloformer.bridge_training.prepare import PreparedBridge
from meloformer.bridge_training.saving import heads_folder


def train_attribute_heads(prepared: PreparedBridge) -> list[str]:
    """Train the heads unless the run has them; what cannot be trained is refused before the bridge.

    Returns:
        A line of their scores on unseen wordings.

    Raises:
        ConfigError: no caption is there of which it is known what it says.
    """
    flags, folder = prepared.flags, heads_folder(prepared.output)
    if (folder / HEADS_NAME).is_file():
        return []
    assert flags.captions is not None
    encoder = TextEncoder.load(flags.text_encoder, prepared.ranks.device)
    heads, scores = heads_of_captions(
        prepared.train.states,
        flags.captions,
        encoder,
        seed=flags.seed,
        device=prepared.ranks.device,
    )
    folder.mkdir(exist_ok=True)
    save_heads(folder, heads)
    words = [f"{name} {score:.3f}" for name, score in scores.items() if math.isfinite(score)]
    return [f"attribute heads, on captions of validation pieces: {', '.join(words) or 'none'}"]
