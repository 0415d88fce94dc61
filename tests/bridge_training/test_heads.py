"""What is said of the attribute heads of a run."""

import math

from meloformer.bridge.attribute_heads import GATES, NUM_VALUES
from meloformer.bridge_training.heads import in_words


def test_scores_are_said_in_percent_and_numbers_with_the_bin_beside() -> None:
    scores = {f"gate_{name}": 0.99 for name in GATES} | dict.fromkeys(NUM_VALUES, 1.0)
    scores |= {f"{name}_within_1": 0.957 for name in NUM_VALUES}
    scores |= {"tempo": 0.9, "key": math.nan, "gate_drums": 0.94, "instruments_f1": 0.5}
    assert in_words(scores) == (
        "attribute heads, % right on captions of validation pieces: metre 100, tempo 90 (96 within "
        "one bin), length 100 (96 within one bin), density 100 (96 within one bin), drums 100, "
        "instruments_f1 50, whether something is said 94 or more"
    )


def test_without_captions_to_score_on_nothing_is_claimed() -> None:
    assert in_words({}).endswith("validation pieces: there are none")
