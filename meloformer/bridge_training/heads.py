"""Attribute heads of a bridge's run: there before the bridge, by one process."""

import math
from collections.abc import Mapping

from meloformer.bridge.attribute_heads import GATES, NUM_VALUES, ORDERED, save_heads
from meloformer.bridge.bridge_folder import HEADS_NAME
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge_training.heads_of_captions import heads_of_captions
from meloformer.bridge_training.prepare import PreparedBridge
from meloformer.bridge_training.saving import heads_folder


def train_attribute_heads(prepared: PreparedBridge) -> list[str]:
    """Train the heads unless the run has them, or another run on the same captions has.

    What cannot be trained is refused before the bridge.

    Returns:
        Lines for the user: where they come from, and how right they are.

    Raises:
        ConfigError: no caption is there of which it is known what it says.
    """
    flags, folder = prepared.flags, heads_folder(prepared.output)
    if (folder / HEADS_NAME).is_file():
        return []
    assert flags.captions is not None
    heads, scores, note = heads_of_captions(
        prepared.train.states,
        flags.captions,
        lambda: TextEncoder.load(flags.text_encoder, prepared.ranks.device),
        seed=flags.seed,
        device=prepared.ranks.device,
    )
    folder.mkdir(exist_ok=True)
    save_heads(folder, heads)
    return [line for line in (note, in_words(scores)) if line]


def in_words(scores: Mapping[str, float]) -> str:
    """What heads hear rightly in captions that they were not trained on, as a line.

    Args:
        scores: see `score_heads`; empty where there was no such caption.
    """
    words = []
    for name in (*NUM_VALUES, "instruments_f1"):
        if math.isfinite(score := scores.get(name, math.nan)):
            words.append(f"{name} {100 * score:.0f}")
            if name in ORDERED:
                words[-1] += f" ({100 * scores[f'{name}_within_1']:.0f} within one bin)"
    if gates := [scores[f"gate_{name}"] for name in GATES if f"gate_{name}" in scores]:
        words.append(f"whether something is said {100 * min(gates):.0f} or more")
    what = "attribute heads, % right on captions of validation pieces"
    return f"{what}: {', '.join(words) or 'there are none'}"
