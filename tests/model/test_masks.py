"""The rules against loops over pairs that spell out DESIGN's sentences one by one."""

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.model import attention, masks
from meloformer.model.masks import RULES
from tests.layouts import as_torch, random_layout

NEAR = {0, 1, 2, 4}
PUBLISHED = {0, 1, 2, 4, 8, 12, 16, 24, 32}


def reads(rule: str, group: int, row: dict, q: int, k: int) -> bool:
    """May token q read token k? In plain words."""
    if row["piece"][q] == -1:
        return q == k
    if row["piece"][k] != row["piece"][q] or k > q:
        return False
    if row["bar"][k] == -1:  # the prefix of its piece
        return True
    if row["bar"][k] == row["bar"][q] and row["index"][k] == 0:  # own bar token
        return True
    distance = row["bar"][q] - row["bar"][k]
    same = row["instrument"][q] == row["instrument"][k]
    match rule, group:
        case "full", _:
            return True
        case "museformer", _:
            return distance in PUBLISHED
        case "hid", _:
            return same or distance in NEAR
        case "halves", 0:
            return same
        case "halves", 1:
            return distance in NEAR
    raise AssertionError(rule)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_allows_exactly_the_pairs_of_its_definition(rule) -> None:
    layout = random_layout(seed=3, rows=2, length=160)
    plan = attention.build_plan(as_torch(layout), RULES[rule])
    num_slots = layout.piece_BS.shape[1]
    for b in range(2):
        row = {
            name: getattr(layout, f"{name}_BT")[b]
            for name in ("piece", "bar", "instrument", "index")
        }
        for group, call in enumerate(plan.update):
            mask = call.mask[b, 0].numpy()
            order = np.arange(160) if call.order_BT is None else call.order_BT[b].numpy()
            for place_q, q in enumerate(order):
                expected = [reads(rule, group, row, q, k) for k in order]
                assert mask[place_q, num_slots:].tolist() == expected
                coarse = (
                    (layout.piece_BS[b] == row["piece"][q])
                    & (row["piece"][q] >= 0)
                    & (layout.bar_BS[b] < row["bar"][q])
                )
                assert mask[place_q, :num_slots].tolist() == coarse.tolist()


def test_a_summary_reads_prefix_own_bar_and_summaries_up_to_its_own() -> None:
    layout = random_layout(seed=4, rows=1, length=160)
    mask = attention.build_plan(as_torch(layout), RULES["full"]).summarize.mask[0, 0].numpy()
    piece_T, bar_T = layout.piece_BT[0], layout.bar_BT[0]
    piece_S, bar_S = layout.piece_BS[0], layout.bar_BS[0]
    num_slots = len(piece_S)
    for s in range(num_slots):
        for k in range(num_slots):
            own = piece_S[s] >= 0 and piece_S[k] == piece_S[s] and bar_S[k] <= bar_S[s]
            assert mask[s, k] == (own or s == k)
        for t in range(160):
            own = piece_S[s] >= 0 and piece_T[t] == piece_S[s] and bar_T[t] in (-1, bar_S[s])
            assert mask[s, num_slots + t] == own


def test_no_query_is_left_without_a_key() -> None:
    layout = as_torch(random_layout(seed=5, rows=4))
    for rule in RULES.values():
        plan = attention.build_plan(layout, rule)
        for call in (plan.summarize, *plan.update):
            assert call.mask.any(-1).all()


def test_an_odd_number_of_heads_cannot_be_halved() -> None:
    with pytest.raises(ConfigError, match="multiples of 2"):
        masks.split_heads(RULES["halves"], 3)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="museformer, hid, halves, full"):
        masks.rule_of("sparse")
